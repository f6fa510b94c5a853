"""A mistake costs a person five lines: the file, the key in full, the nearest right name."""

import pytest

NETWORK = "model.init_args.network"


def overlay(folder, text):
    (folder / "change.yaml").write_text(text, encoding="utf-8")


IN_A_FILE = {
    "argument": ("model: {init_args: {netwrk: 3}}", "model.init_args.netwrk", "network"),
    "nested argument": (
        f"{'model: {init_args: {network: {init_args: {widht: 3}}}}'}",
        f"{NETWORK}.init_args.widht",
        "width",
    ),
    "argument in a list": (
        "data: {init_args: {augment: [{class_path: Blur}, {class_path: Blur, init_args: {sigm: 1}}]}}",
        "data.init_args.augment[1].init_args.sigm",
        "sigma",
    ),
    "argument of an optimizer": (
        "model: {init_args: {optimizer: {init_args: {lrr: 1}}}}",
        "model.init_args.optimizer.init_args.lrr",
        "lr",
    ),
    "trainer": ("trainer: {max_epoch: 3}", "trainer.max_epoch", "max_epochs"),
    "section": ("modle: {init_args: {rate: 3}}", "modle", "model"),
    "init_args": ("model: {init_args: {network: {init_arg: {width: 3}}}}", "init_arg", "init_args"),
    "class": ("model: {init_args: {network: {class_path: ToyWide}}}", NETWORK, "WideToy"),
    "class of a file": ("model: {init_args: {network: {class_path: toy_parts.Widetoy}}}", NETWORK, "WideToy"),
    "callback": ("trainer: {callbacks: [{class_path: EarlyStoping}]}", "trainer.callbacks[0]", "EarlyStopping"),
    "type": ("model: {init_args: {network: {init_args: {width: abc}}}}", f"{NETWORK}.init_args.width", "int"),
    "type in the trainer": ("trainer: {max_epochs: soon}", "trainer.max_epochs", "int or null"),
    "type in a table": ("data: {init_args: {classes: {liver: 3}}}", "data.init_args.classes", "dict[str, list[str]]"),
    "wrong kind of class": ("model: {init_args: {network: {class_path: toy_parts.Blur}}}", NETWORK, "Toy"),
    "value a constructor refuses": (
        "model: {init_args: {network: {init_args: {width: 0}}}}",
        NETWORK,
        "width is 0 and must be 1 or more",
    ),
    "choice": ("trainer: {precision: 17}", "trainer.precision", "bf16-mixed"),
    "no YAML": ("model: [a: {", "line 1", "no YAML"),
    "no keys": ("just words", "change.yaml", "key: value"),
    "twice": ("data: {init_args: {size: 6}}\ntrainer: {}\ndata: {}", "line 3", "first in line 1"),
}


@pytest.mark.parametrize("name", IN_A_FILE)
def test_a_mistake_in_a_recipe_is_named_in_five_lines(command, folder, name):
    text, key, right = IN_A_FILE[name]
    overlay(folder, text)
    code, _, err = command("fit", "base.yaml", "change.yaml")
    assert code == 2
    assert len(err.splitlines()) <= 5
    assert key in err
    assert right in err
    assert "Traceback" not in err
    assert ("base.yaml" if name == "value a constructor refuses" else "change.yaml") in err


ON_THE_COMMAND_LINE = {
    "argument": (["--model.netwrk=3"], "model.init_args.netwrk", "network"),
    "nested argument": (["--model.network.widht", "3"], f"{NETWORK}.init_args.widht", "width"),
    "trainer": (["--trainer.max_epoch=3"], "trainer.max_epoch", "max_epochs"),
    "no prefix is taken for a name": (["--trainer.max_ep=3"], "trainer.max_ep", "max_epochs"),
    "type": (["--model.rate=3a"], "model.init_args.rate", "float"),
    "class": (["--model.network=ToyWide"], NETWORK, "WideToy"),
    "checkpoint": (["--ckpt_path", "none.ckpt"], "none.ckpt", "no such file"),
    "recipe": (["--config", "qickstart"], "qickstart", "quickstart"),
    "stray word": (["--trainer.max_epochs", "3", "stray"], "stray", "unrecognized"),
}


@pytest.mark.parametrize("name", ON_THE_COMMAND_LINE)
def test_a_mistake_on_the_command_line_is_named_in_five_lines(command, name):
    words, key, right = ON_THE_COMMAND_LINE[name]
    code, _, err = command("fit", "base.yaml", *words)
    assert code == 2
    assert len([line for line in err.splitlines() if "Warn" not in line]) <= 5
    assert key in err
    assert right in err
    assert "Traceback" not in err


def test_the_first_file_that_is_wrong_is_named_with_its_line(command, folder):
    (folder / "base.yaml").write_text(
        (folder / "base.yaml").read_text(encoding="utf-8").replace("size: 4", "sice: 4"), encoding="utf-8"
    )
    overlay(folder, "data: {init_args: {size: 6}}")
    assert "base.yaml, line 10: data.init_args.sice" in command("fit", "base.yaml", "change.yaml")[2]


def test_debug_shows_the_traceback(command, folder):
    overlay(folder, "model: {init_args: {netwrk: 3}}")
    with pytest.raises(Exception, match="netwrk"):
        command("fit", "base.yaml", "--debug", "change.yaml")


def test_arguments_that_a_changed_class_drops_are_named_once(command, folder):
    overlay(folder, "model: {init_args: {network: {class_path: WideToy}}}")
    code, _, err = command("fit", "base.yaml", "change.yaml", "--print_config")
    notes = [line for line in err.splitlines() if line.startswith("note:")]
    assert code == 0
    assert len(notes) == 1
    for part in ("change.yaml, line 1", NETWORK, "WideToy", "depth: 2", "base.yaml, line 5"):
        assert part in notes[0]


def test_a_class_changed_on_the_command_line_drops_arguments_aloud(command):
    _, out, err = command("fit", "base.yaml", "--model.network", "WideToy", "--print_config")
    assert "note: command line: " in err
    assert "width: 4" in out


def test_defaults_that_nobody_wrote_are_not_reported_as_dropped(command, folder):
    overlay(folder, "data: {init_args: {augment: [{class_path: Blur}]}}\nmodel: {init_args: {rate: 0.5}}")
    assert "note:" not in command("fit", "base.yaml", "change.yaml", "--print_config")[2]
