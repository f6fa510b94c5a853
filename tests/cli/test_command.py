"""From words to a run: recipes in order, one folder out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_atlas.cli.command import LAUNCHED
from lightning_atlas.cli.run_folder import last_checkpoint


def only_run(folder):
    (run,) = (folder / "runs" / "base").iterdir()
    return run


def test_a_fit_ends_in_one_folder_that_is_enough_by_itself(command, folder):
    code, out, _ = command("fit", "--config", "base.yaml")
    run = only_run(folder)
    assert code == 0
    assert "recipe: base.yaml" in out
    assert {"recipe.yaml", "environment.txt", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    assert {"torch:", "python:", "command:"} <= set((run / "environment.txt").read_text(encoding="utf-8").split())
    assert any(path.name.startswith("events.") for path in run.iterdir())


@pytest.mark.parametrize(
    "logger", ["false", "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: csv}}"]
)
def test_the_run_folder_does_not_depend_on_the_logger(command, folder, logger):
    (folder / "logger.yaml").write_text(f"trainer: {{logger: {logger}}}", encoding="utf-8")
    assert command("fit", "base.yaml", "logger.yaml")[0] == 0
    assert (only_run(folder) / "recipe.yaml").is_file()
    assert last_checkpoint(only_run(folder)).name == "last.ckpt"
    assert (folder / "csv").is_dir() == (logger != "false")


def test_two_runs_at_once_get_two_folders(command, folder):
    for _ in range(2):
        assert command("fit", "base.yaml", "--trainer.max_epochs", "1")[0] == 0
    assert len(list((folder / "runs" / "base").iterdir())) == 2


def test_a_fast_run_writes_nothing(command, folder):
    assert command("fit", "base.yaml", "--trainer.fast_dev_run=true")[0] == 0
    assert [path.name for path in folder.iterdir()] == ["base.yaml"]


def test_words_before_the_first_option_are_configs(command, folder):
    (folder / "more.yaml").write_text("data: {init_args: {size: 6}}", encoding="utf-8")
    words = command("fit", "base", "more", "--model.rate=0.3", "--print_config")
    options = command("fit", "--model.rate=0.3", "--config=base.yaml", "-c", "more.yaml", "--print_config")
    assert words[0] == options[0] == 0
    assert words[1] == options[1]
    assert yaml.safe_load(words[1])["data"]["init_args"]["size"] == 6


def test_later_recipes_win_and_keep_what_they_do_not_name(command, folder):
    (folder / "one.yaml").write_text(
        "model: {init_args: {optimizer: {init_args: {lr: 0.5}}, rate: 0.2}}", encoding="utf-8"
    )
    (folder / "two.yaml").write_text("model: {init_args: {rate: 0.7}}", encoding="utf-8")
    out = yaml.safe_load(command("fit", "base", "one", "two", "--data.size=8", "--print_config")[1])
    model = out["model"]["init_args"]
    assert (model["optimizer"]["class_path"], model["optimizer"]["init_args"]["lr"]) == ("torch.optim.AdamW", 0.5)
    assert (model["rate"], model["network"]["init_args"]["depth"], out["data"]["init_args"]["size"]) == (0.7, 2, 8)


def test_a_printed_recipe_runs_again_as_it_is(command, folder):
    _, printed, err = command("fit", "base.yaml", "--model.rate=0.3", "--print_config")
    assert "recipe: base.yaml" in err
    (folder / "printed.yaml").write_text(printed, encoding="utf-8")
    assert command("fit", "printed.yaml", "--print_config")[1] == printed
    assert command("fit", "printed.yaml")[0] == 0


@pytest.mark.parametrize("name", ["torchio.RandomNoise", "RandomNoise"])
def test_short_names_of_transforms_callbacks_and_optimizers_resolve(command, folder, name):
    (folder / "own_data.py").write_text(
        "import torchio\nfrom toy_parts import ToyData\n\n"
        "class OwnData(ToyData):\n"
        "    def __init__(self, augment: list[torchio.Transform]):\n"
        "        super().__init__()\n",
        encoding="utf-8",
    )
    (folder / "short.yaml").write_text(
        "model: {init_args: {optimizer: {class_path: SGD}}}\n"
        "data:\n  class_path: own_data.OwnData\n"
        f"  init_args: {{augment: [{{class_path: {name}, init_args: {{std: 0.1}}}}]}}\n"
        "trainer: {callbacks: [{class_path: Timer}]}\n",
        encoding="utf-8",
    )
    out = yaml.safe_load(command("fit", "base.yaml", "short.yaml", "--print_config")[1])
    assert out["data"]["init_args"]["augment"][0]["class_path"] == "torchio.RandomNoise"
    assert out["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.SGD"
    assert out["trainer"]["callbacks"][0]["class_path"] == "lightning.pytorch.callbacks.Timer"


def test_a_checkpoint_resumes_and_never_rewrites_the_recipe(command, folder):
    command("fit", "base.yaml")
    path = last_checkpoint(only_run(folder))
    assert torch.load(path, weights_only=True)["hyper_parameters"]["rate"] == 0.1
    code, out, _ = command("test", "base.yaml", "--model.rate=0.7", "--ckpt_path", path)
    assert code == 0
    assert "rate 0.7 " in out


def test_test_of_a_run_gives_the_same_numbers_and_no_new_folder(command, folder):
    _, first, _ = command("fit", "base.yaml")
    before = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_dir())
    run = only_run(folder).relative_to(folder)
    code, second, _ = command("test", run)
    line = next(line for line in first.splitlines() if line.startswith("rate "))
    assert code == 0
    assert line in second.splitlines()
    assert f"checkpoint: {run / 'checkpoints' / 'last.ckpt'}" in second
    assert sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_dir()) == before


def test_a_run_takes_further_changes(command, folder):
    command("fit", "base.yaml")
    (folder / "more.yaml").write_text("model: {init_args: {note: later}}", encoding="utf-8")
    run = only_run(folder)
    out = yaml.safe_load(command("test", run, "--config", "more.yaml", "--model.rate", "0.7", "--print_config")[1])
    assert (out["model"]["init_args"]["note"], out["model"]["init_args"]["rate"]) == ("later", 0.7)
    assert out["ckpt_path"] == str(run / "checkpoints" / "last.ckpt")


def test_inspect_names_checkpoint_steps_and_what_the_checkpoint_states(command, folder):
    command("fit", "base.yaml")
    run = only_run(folder)
    path = last_checkpoint(run)
    stated = {"contract": {"classes": ["liver", "spleen"], "modality": "CT", "window": None}, "source": "starter"}
    torch.save({**torch.load(path, weights_only=True), "lightning_atlas": stated}, path)
    (run / "scores.csv").write_text("case,dice\na,0.5\nb,0.7\n", encoding="utf-8")
    code, out, _ = command("inspect", run)
    assert code == 0
    for part in (str(path), "4 steps, 2 epochs", "['liver', 'spleen']", "modality: CT", "source: starter", "b,0.7"):
        assert part in out
    assert "window" not in out


def test_a_recipe_with_its_own_checkpoints_gets_no_second_set(command, folder):
    (folder / "own.yaml").write_text(
        "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {filename: 'mine-{epoch}'}}]}", encoding="utf-8"
    )
    command("fit", "base.yaml", "own.yaml")
    assert [path.name for path in (only_run(folder) / "checkpoints").iterdir()] == ["mine-epoch=1.ckpt"]
    assert last_checkpoint(only_run(folder)).name == "mine-epoch=1.ckpt"


def test_predict_says_where_it_would_write(command, folder):
    command("fit", "base.yaml")
    run = only_run(folder)
    for words in (["predict", "base.yaml"], ["predict", run, "--input", "."]):
        code, _, err = command(*words)
        assert code == 2
        assert "--output DIR" in err
    assert "nowhere does not exist" in command("predict", run, "--input", "nowhere", "--output", "out")[2]


def test_folders_without_a_run_or_a_checkpoint_are_named(command, folder):
    assert "recipe.yaml" in command("inspect", folder)[2]
    (folder / "recipe.yaml").write_text("{}", encoding="utf-8")
    code, _, err = command("test", folder)
    assert code == 2
    assert "has no checkpoint" in err


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_each_verb_has_help(command, verb):
    code, out, _ = command(verb, "--help")
    assert code == 0
    assert out.startswith(f"usage: lightning-atlas {verb} R")
    assert "--trainer.max_epochs" in out


@pytest.mark.parametrize(("verb", "option"), [("export", "--output"), ("inspect", "--json"), ("prepare", "--check")])
def test_each_verb_of_our_own_has_help_too(command, verb, option):
    code, out, _ = command(verb, "--help")
    assert code == 0
    assert out.startswith(f"usage: lightning-atlas {verb}")
    assert option in out
    assert f"  {verb} " in command("--help")[1]


def test_published_weights_have_a_verb(command):
    code, out, _ = command("weights", "list")
    assert code == 0
    assert "starter_abdomen_ct" in out
    assert "  weights list" in command()[1]


def test_help_and_version_and_an_unknown_verb(command):
    assert "fit RECIPE" in command()[1]
    assert command("--version")[1].startswith("lightning_atlas 0.")
    code, _, err = command("fitt", "base.yaml")
    assert code == 2
    assert "did you mean fit?" in err


def in_a_shell(folder, *words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lightning_atlas", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        timeout=200,
    )


def test_the_light_verbs_load_no_torch_and_survive_a_narrow_code_page(tmp_path):
    folder = tmp_path / "Prüfung für 脳"
    folder.mkdir()
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')", encoding="utf-8")
    done = in_a_shell(folder, "recipes", PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stderr) == (0, b"")
    failed = in_a_shell(folder, "fit", "naïve 脳.yaml", PYTHONIOENCODING="cp1252")
    assert failed.returncode == 2
    assert b"Traceback" not in failed.stderr


@pytest.mark.slow
def test_all_processes_of_a_run_share_its_folder(folder):
    parts = str(Path(__file__).parent)
    path = f"{Path(__file__).parents[2]}{':' if sys.platform != 'win32' else ';'}{parts}"
    done = in_a_shell(folder, "fit", "base", "--trainer.devices=2", "--trainer.strategy=ddp", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr.decode()
    assert last_checkpoint(only_run(folder)).name == "last.ckpt"
    assert done.stdout.count(b"recipe: ") == 1


@pytest.mark.parametrize("launched", [{}, {"LOCAL_RANK": "1"}, {"SLURM_PROCID": "0"}])
def test_a_process_ends_with_the_exit_code_of_its_command(launched):
    environment = {key: value for key, value in os.environ.items() if key not in LAUNCHED} | launched
    for words, code in ((["--version"], 0), (["fitt"], 2)):
        command = [sys.executable, "-m", "lightning_atlas", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert (done.stdout or done.stderr).strip()


def test_one_of_several_processes_ends_before_the_interpreter_cleans_up():
    script = "import atexit; atexit.register(print, 'cleaned'); from lightning_atlas.cli.command import leave; leave(3)"
    command = [sys.executable, "-c", script]
    alone = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    for environment, told in ((alone, "cleaned\n"), (alone | {"LOCAL_RANK": "0"}, "")):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (3, told)
