"""What weights are, and what a recipe would take of them: for people, and as one JSON object for machines."""

import json
from pathlib import Path

import matplotlib.image
import pytest
import torch

from lightning_atlas.cli import main
from lightning_atlas.networks import UNet

FORMATS = Path(__file__).parents[1] / "intake" / "formats"
RECIPE = """\
model:
  class_path: TransferLearning
  init_args:
    task:
      class_path: Segmentation
      init_args: {window: {class_path: SlidingWindow, init_args: {patch: [16, 16, 16]}}}
    allow: [modality]
data:
  class_path: ScanDataModule
  init_args:
    source: {class_path: SimulatedCohort, init_args: {scan: abdomen_mr, train: 1, val: 0, test: 1}}
    classes: {spleen: [spleen], aorta: [aorta]}
    preprocess:
      - {class_path: torchio.ToCanonical}
      - {class_path: torchio.Resample, init_args: {target: 2}}
      - {class_path: torchio.Clamp, init_args: {out_min: -200, out_max: 300}}
      - {class_path: torchio.RescaleIntensity, init_args: {out_min_max: [0, 1], in_min_max: [-200, 300]}}
"""


@pytest.fixture
def inspect(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")

    def run(*words):
        capsys.readouterr()
        return main(["inspect", *map(str, words)]), *capsys.readouterr()

    return run


def found(inspect, *words, refused=False):
    code, out, err = inspect(*words, "--json")
    assert (code, "error: a fit would refuse this: " in err) == ((2, True) if refused else (0, False))
    return json.loads(out)


def test_an_export_is_told_in_full(inspect):
    told = found(inspect, FORMATS / "1")
    card = json.loads((FORMATS / "1" / "atlas.json").read_text(encoding="utf-8"))
    assert told["kind"] == "export of lightning_atlas"
    assert told["sha256"] == card["weights"]["sha256"]
    assert (told["tensors"], told["parameters"]) == (card["weights"]["tensors"], card["weights"]["parameters"])
    assert told["classes"] == ["liver", "spleen"]
    assert told["contract"]["spacing_mm"] == [3.0, 3.0, 3.0]
    assert told["network"] == card["network"]
    code, out, _ = inspect(FORMATS / "1")
    assert code == 0
    for part in ("export of lightning_atlas", "22 tensors", "liver, spleen", "spacing_mm: [3.0, 3.0, 3.0]", "CT"):
        assert part in out


@pytest.mark.parametrize(
    ("content", "nest", "prefix"),
    [
        (lambda state: state, None, None),
        (lambda state: {"state_dict": state, "epoch": 3}, "state_dict", None),
        (
            lambda state: {"net": {f"module.backbone.{name}": each for name, each in state.items()}},
            "net",
            "module.backbone.",
        ),
    ],
)
def test_a_file_of_torch_tells_nest_and_prefix_and_what_it_looks_like(inspect, tmp_path, content, nest, prefix):
    network = UNet(out_channels=29, features=(16, 32, 64, 96)).half()
    torch.save(content(network.state_dict()), tmp_path / "some.pt")
    told = found(inspect, tmp_path / "some.pt")
    assert (told["nest"], told["prefix"], told["precision"]) == (nest, prefix, "float16")
    assert told["parameters"] == sum(each.numel() for each in network.state_dict().values())
    assert told["size_bytes"] == (tmp_path / "some.pt").stat().st_size
    assert (told["published_as"], told["contract"], told["network"]) == (None, None, None)
    assert told["looks_like"][0] == {"name": "starter_abdomen_ct", "matched": 50, "total": 50}


def test_published_weights_are_known_by_their_hash(inspect):
    told = found(inspect, "starter_abdomen_ct")
    assert told["published_as"] == {"name": "starter_abdomen_ct", "by": "sha256"}
    assert len(told["classes"]) == 28


def test_nothing_in_a_file_is_run(inspect, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    code, _, err = inspect(tmp_path / "evil.pt")
    assert code == 2
    assert "was blocked" in err
    assert not (tmp_path / "ran").exists()


def test_a_recipe_shows_what_it_would_take_and_where_it_breaks_the_contract(inspect, tmp_path):
    told = found(inspect, FORMATS / "1", "--config", tmp_path / "recipe.yaml")["recipe"]
    assert told["network"] == "UNet"  # of the weights, since the recipe names none
    assert told["head"] == {"matched": ["spleen"], "fresh": ["aorta"], "not_used": ["liver"]}
    assert {each["name"] for each in told["reshaped"]} == {"head.weight", "head.bias"}
    assert (len(told["loaded"]), told["fresh"], told["left_over"], told["encoder_share"]) == (20, [], [], 1.0)
    differences = {each["key"]: each for each in told["differences"]}
    assert differences.keys() == {"modality", "spacing_mm"}
    assert (differences["modality"]["weights"], differences["modality"]["data"]) == ("CT", "MR")
    assert differences["spacing_mm"]["data"] == [2.0, 2.0, 2.0]
    assert (differences["modality"]["allowed"], differences["spacing_mm"]["allowed"]) == (True, False)
    code, out, _ = inspect(FORMATS / "1", "--config", tmp_path / "recipe.yaml", "--model.contract=adopt")
    assert code == 0
    for part in ("1 matched (spleen); 1 fresh (aorta); 1 not used (liver)", "allowed by the recipe", "adopted by the"):
        assert part in out


def test_a_fresh_head_shows_no_class_as_matched(inspect, tmp_path):
    words = ["--config", tmp_path / "recipe.yaml", "--model.head=fresh"]
    told = found(inspect, FORMATS / "1", *words)["recipe"]
    assert told["head"] == {"matched": [], "fresh": ["spleen", "aorta"], "not_used": ["liver", "spleen"]}
    assert {each["name"] for each in told["fresh"]} == {"head.weight", "head.bias"}
    assert told["reshaped"] == []


def test_another_network_shows_what_would_stay_fresh(inspect, tmp_path):
    words = ["--config", tmp_path / "recipe.yaml", "--model.network=UNet"]
    told = found(inspect, FORMATS / "1", *words, "--model.network.features=[2,6]", refused=True)["recipe"]
    assert 0.1 < told["encoder_share"] < 0.9
    assert "90.0% are required" in told["refused"]
    assert "encoder.1.0.conv.weight" in {each["name"] for each in told["fresh"]}
    assert "encoder.1.0.conv.weight" in {each["name"] for each in told["left_over"]}
    code, out, err = inspect(FORMATS / "1", *words, "--model.network.features=[2,6]")
    assert (code, "90.0% are required" in out, len(err.splitlines()) <= 3) == (2, False, True)
    assert "tensors of " in out
    nothing = found(inspect, FORMATS / "1", *words, refused=True)["recipe"]
    assert "0.0% of the encoder" in nothing["refused"]
    assert nothing["head"]["matched"] == []


def test_data_that_are_not_here_leave_the_rest_to_be_told(inspect, tmp_path):
    words = ["--config", tmp_path / "recipe.yaml", "--data.source=ScanFolder", "--data.source.images=nowhere"]
    told = found(inspect, FORMATS / "1", *words)["recipe"]
    assert "nowhere" in told["data_not_read"]
    assert len(told["loaded"]) >= 20
    plan = ["--trainer.max_steps=9", "--model.adaptation=[{class_path: SurgicalBlock, init_args: {first: encoder.9}}]"]
    told = found(inspect, FORMATS / "1", *words, *plan, refused=True)["recipe"]
    assert "no stage is called encoder.9" in told["plan_refused"]


def test_mistakes_are_told_in_few_lines(inspect, tmp_path):
    for words, told in {
        ("nowhere.pt",): "nowhere.pt",
        (FORMATS / "1", "--jsno"): "did you mean --json?",
        (FORMATS / "1", "--model.weights=null"): "add --config RECIPE",
        (FORMATS / "1", "--config", "quickstrat"): "did you mean quickstart?",
        (): "the following arguments are required: weights",
    }.items():
        code, _, err = inspect(*words)
        assert code == 2
        assert told in err
        assert len(err.splitlines()) <= 5


def test_a_window_that_scans_in_other_units_cannot_have_is_not_said_to_be_adopted(inspect):
    words = ("starter_abdomen_ct", "--config", "target/abdomen_mr", "--config", "start/starter")
    differences = found(inspect, *words)["recipe"]["differences"]
    told = {each["key"]: (each["allowed"], each["adopted"]) for each in differences}
    assert told == dict.fromkeys(("modality", "normalization", "window"), (True, False))


def overlay(folder: Path, adaptation: str) -> list[object]:
    optimizer = "{class_path: torch.optim.AdamW, init_args: {lr: 0.01}}"
    text = (
        f"model: {{init_args: {{optimizer: {optimizer}, adaptation: [{adaptation}]}}}}\ntrainer: {{max_steps: 100}}\n"
    )
    (folder / "method.yaml").write_text(text, encoding="utf-8")
    return ["--config", folder / "recipe.yaml", "--config", folder / "method.yaml"]


def test_a_recipe_shows_what_would_move_and_how_fast(inspect, tmp_path):
    words = overlay(tmp_path, "{class_path: LayerWiseDecay, init_args: {decay: 0.5}}")
    told = found(inspect, FORMATS / "1", *words)["recipe"]
    *body, head = told["stages"]
    assert told["total_steps"] == 100
    assert sum(each["tensors"] for each in told["stages"]) == 22
    assert [each["fresh"] for each in told["stages"]] == [False] * len(body) + [True]
    assert [each["rate"]["peak"] for each in body] == pytest.approx([0.01 * 0.5**n for n in reversed(range(len(body)))])
    assert (head["rate"], head["weight_decay"]) == ({"start": 0.01, "peak": 0.01, "end": 0.01}, 0.01)
    assert all(each["moving"] == each["parameters"] for each in told["stages"])
    typed = [*words[:2], "--trainer.max_steps=100", "--model.adaptation=[{class_path: HeadOnly}]"]  # with a space
    assert found(inspect, *typed, "--model.network=UNet")["recipe"]["stages"][0]["moving"] == 0
    code, out, _ = inspect(FORMATS / "1", *words)
    assert code == 0
    lines = out.partition("in a fit of 100 optimizer steps:\n")[2].splitlines()
    assert [line.split()[0] for line in lines[1 : len(body) + 2]] == [each["stage"] for each in told["stages"]]


def test_the_picture_shows_the_rates_and_a_recipe_needs_no_weights_beside_its_own(inspect, tmp_path):
    picture = tmp_path / "new" / "rates.png"
    words = [*overlay(tmp_path, "{class_path: HeadOnly}"), "--picture", picture]
    told = found(inspect, *words, f"--model.weights={FORMATS / '1'}")
    assert told["kind"] == "export of lightning_atlas"
    assert [each["moving"] > 0 for each in told["recipe"]["stages"]] == [False] * (
        len(told["recipe"]["stages"]) - 1
    ) + [True]
    assert matplotlib.image.imread(picture)[..., :3].std() > 0.05
    code, out, _ = inspect(
        *words[:2], "--trainer.max_steps", "3", "--model.network", "UNet", "--model.network.features=[2,4]"
    )
    assert (code, "the recipe starts from scratch" in out, "yes, fresh" in out) == (0, True, True)


@pytest.mark.parametrize(
    ("adaptation", "steps", "told"),
    [
        ("{class_path: SurgicalBlock, init_args: {first: encoder.9}}", 5, "no stage is called encoder.9"),
        ("{class_path: HeadOnly}", -1, "set trainer.max_steps"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line_below_all_else(inspect, tmp_path, adaptation, steps, told):
    words = [*overlay(tmp_path, adaptation), f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1"]
    code, out, err = inspect(FORMATS / "1", *words)
    assert (code, "tensors of " in out, told in out) == (2, True, False)
    (line,) = err.splitlines()
    assert line.startswith("error: a fit would refuse this: ")
    assert told in line
    assert told in found(inspect, FORMATS / "1", *words, refused=True)["recipe"]["plan_refused"]


def test_a_decay_that_leaves_nearly_nothing_is_warned_of_once(inspect, tmp_path):
    words = overlay(tmp_path, "{class_path: LayerWiseDecay, init_args: {decay: 0.05}}")
    assert inspect(FORMATS / "1", *words)[1].count("caution: LayerWiseDecay leaves the first stage") == 1
    words = overlay(tmp_path, "{class_path: LayerWiseDecay, init_args: {decay: 0.9}}")
    assert "caution" not in inspect(FORMATS / "1", *words)[1]


def test_a_picture_needs_a_recipe_and_is_a_png(inspect, tmp_path):
    code, _, err = inspect(FORMATS / "1", "--picture", "rates.png")
    assert (code, "add --config RECIPE" in err) == (2, True)
    code, _, err = inspect(FORMATS / "1", "--config", tmp_path / "recipe.yaml", "--picture", "rates.svg")
    assert (code, "does not end in .png" in err) == (2, True)
