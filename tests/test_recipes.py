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
SMALLER = {
    # Five halvings of 32 voxels leave one, which cannot be normalised; and 62 million parameters are many for a test.
    "suprem_swin_unetr": [
        "--model.network.feature_size=12",
        "--data.patches.size=[64, 64, 64]",
        "--model.task.window.patch=[64, 64, 64]",
    ]
}


def name(path):
    return path.relative_to(RECIPES).as_posix()


def fit(*recipes, folder, options=()):
    code = main(["fit", *(f"--config={each}" for each in recipes), f"--trainer.default_root_dir={folder}", *options])
    checkpoints = list(Path(folder).rglob("last.ckpt"))
    assert code == 0
    assert len(checkpoints) == 1
    return checkpoints[0].parent.parent


@pytest.mark.parametrize("recipe", COMPLETE, ids=name)
def test_every_complete_recipe_runs_one_step(recipe, tmp_path):
    overlaps = "exclusive: false" in recipe.read_text(encoding="utf-8")
    overlays = [SMOKE, OVERLAPPING] if overlaps else [SMOKE]
    run = fit(recipe, *overlays, folder=tmp_path, options=SMALLER.get(recipe.stem, ()))
    assert {"recipe.yaml", "environment.txt", "scores.csv"} <= {path.name for path in run.iterdir()}


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_every_method_runs_on_a_target_and_a_start(method, tmp_path):
    run = fit(TARGET, RECIPES / "start" / "starter.yaml", method, SMOKE, folder=tmp_path)
    merged, overlay = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (run / "recipe.yaml", method))
    made, asked = (each["model"]["init_args"]["adaptation"] for each in (merged, overlay))
    assert [each["class_path"].rpartition(".")[2] for each in made] == [each["class_path"] for each in asked]
    assert merged["model"]["init_args"]["weights"] == "starter_abdomen_ct"


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
