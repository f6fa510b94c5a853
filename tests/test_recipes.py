from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from lightning_atlas.cli import main
from lightning_atlas.cli.recipes import recipes_folder

RECIPES = recipes_folder()
COMPLETE = sorted([RECIPES / "quickstart.yaml", *RECIPES.glob("pretrain/*.yaml"), *RECIPES.glob("target/*.yaml")])
STARTS = sorted(RECIPES.glob("start/*.yaml"))
METHODS = sorted(RECIPES.glob("method/*.yaml"))
TARGET = RECIPES / "target" / "abdomen_mr.yaml"
SMOKE = RECIPES / "machine" / "smoke.yaml"
OVERLAPPING = RECIPES / "machine" / "smoke_overlapping.yaml"
SCANS = RECIPES / "machine" / "smoke_targets.yaml"
VALID = RECIPES / "machine" / "smoke_valid.yaml"
PICTURES = RECIPES / "machine" / "smoke_pictures.yaml"
OWN_LAYOUT = ("totalsegmentator_*", "imagecas", "jhh_pancreas", "flare2?", "saros", "lidc_*", "bcv", "lits", "deeple*")
"""Run on files made in their datasets' layouts: tests/test_targets.py."""
SMALLER = {
    # Five halvings of 32 voxels leave one, which cannot be normalised; and 62 million parameters are many for a test.
    "suprem_swin_unetr": [
        "--model.network.feature_size=12",
        "--data.patches.size=[64, 64, 64]",
        "--model.task.window.patch=[64, 64, 64]",
    ],
    "vdt_imagenet_r3d18": ["--model.network.features=8"],
    "vdt_imagenet_r3d50": ["--model.network.features=8"],
    "vdt_coco_mp3d": [
        "--model.network.network.features=8",
        "--model.network.features=16",
        "--data.augment=[{class_path: RandomColoursToSlices}]",
        "--data.evaluate=[{class_path: ColoursToSlices}]",
    ],
}

LONG = ("suprem_unet", "suprem_swin_unetr", "body_region_ct", "vdt_imagenet_r3d50")
"""Complete recipes that are run by `-m slow`: large networks, many scans."""
QUICK = ("heads_first", "layer_wise_decay", "lora")
"""Methods that are run by default; all are parsed and built in other tests, and run by `-m slow`."""
PASSES_FOR_EACH_CHANNEL = ("delta",)
OTHER_NETWORK = {"stochastic_norm": ["--model.network=GenesisUNet", "--model.network.init_filters=2"]}
"""Methods that the network of the target has no layers for, and one that has."""


def name(path):
    return path.relative_to(RECIPES).as_posix()


def fit(*recipes, folder, options=()):
    code = main(["fit", *(f"--config={each}" for each in recipes), f"--trainer.default_root_dir={folder}", *options])
    checkpoints = list(Path(folder).rglob("last.ckpt"))
    assert code == 0
    assert len(checkpoints) == 1
    return checkpoints[0].parent.parent


COMPLETE_RUNS = [
    pytest.param(each, id=name(each), marks=pytest.mark.slow if each.stem in LONG else ())
    for each in COMPLETE
    if not any(fnmatch(each.stem, own) for own in OWN_LAYOUT)
]


@pytest.mark.parametrize("recipe", COMPLETE_RUNS)
def test_every_complete_recipe_runs_one_step(recipe, tmp_path):
    overlaps = "exclusive: false" in recipe.read_text(encoding="utf-8")
    scans = "class_path: Targets" in recipe.read_text(encoding="utf-8")
    valid = "class_path: ValidUNet" in recipe.read_text(encoding="utf-8")
    if "class_path: PictureDataModule" in recipe.read_text(encoding="utf-8"):
        overlays = [PICTURES]
    else:
        kinds = ((OVERLAPPING, overlaps), (SCANS, scans), (VALID, valid))
        overlays = [SMOKE, *(overlay for overlay, fits in kinds if fits)]
    run = fit(recipe, *overlays, folder=tmp_path, options=SMALLER.get(recipe.stem, ()))
    assert {"recipe.yaml", "environment.txt", "scores.csv"} <= {path.name for path in run.iterdir()}


METHOD_RUNS = [
    pytest.param(each, id=name(each), marks=() if each.stem in QUICK else pytest.mark.slow)
    for each in METHODS
    if each.stem not in OTHER_NETWORK
]


@pytest.mark.parametrize("method", METHOD_RUNS)
def test_every_method_runs_on_a_target_and_a_start(method, tmp_path):
    smaller = ["--data.patches.size=[16, 16, 16]"] if method.stem in PASSES_FOR_EACH_CHANNEL else []
    run = fit(TARGET, RECIPES / "start" / "starter.yaml", method, SMOKE, folder=tmp_path, options=smaller)
    merged, overlay = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (run / "recipe.yaml", method))
    made, asked = (each["model"]["init_args"].get("adaptation") or [] for each in (merged, overlay))
    assert [each["class_path"].rpartition(".")[2] for each in made] == [each["class_path"] for each in asked]
    assert merged["model"]["init_args"]["weights"] == "starter_abdomen_ct"


@pytest.mark.parametrize("stem", OTHER_NETWORK)
def test_every_method_for_other_networks_runs_on_one(stem, tmp_path):
    fit(TARGET, RECIPES / "method" / f"{stem}.yaml", SMOKE, folder=tmp_path, options=OTHER_NETWORK[stem])


@pytest.mark.parametrize("overlay", [*STARTS, *METHODS, *sorted(RECIPES.glob("machine/*.yaml"))], ids=name)
def test_every_overlay_parses_on_a_target(overlay, capsys):
    assert main(["fit", f"--config={TARGET}", f"--config={overlay}", "--print_config"]) == 0
    assert "class_path" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", COMPLETE, ids=name)
def test_every_complete_recipe_opens_with_its_command_and_its_result(recipe):
    header = [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("python -m lightning_atlas fit" in line for line in header)
    assert any(line.startswith("# Result:") for line in header)


@pytest.mark.parametrize("overlay", [*STARTS, *METHODS], ids=name)
def test_overlays_are_short_and_stay_in_their_room(overlay):
    text = overlay.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 20
    assert set(yaml.safe_load(text)) == {"model"}
