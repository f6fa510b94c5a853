"""2D weights in a fit from the command line: scans lie as pictures do, and the report says what became of kernels."""

import pytest
import torch
from flat_resnet import drawn_flat

from lightning_atlas.cli import main
from lightning_atlas.cli.recipes import recipes_folder

FOLDER = recipes_folder()
RECIPES = [FOLDER / "target" / "abdomen_mr.yaml", FOLDER / "start" / "torchvision_resnet18.yaml"]


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(drawn_flat(1, 18).state_dict(), path)
    return path


def run(verb, *options):
    words = [f"--config={each}" for each in (*RECIPES, FOLDER / "machine" / "smoke.yaml")]
    return main([*verb, *words, "--model.network.init_args.backbone.init_args.features=8", *options])


def test_inspect_tells_what_a_recipe_makes_of_a_2d_resnet(weights, capsys):
    assert run(["inspect", f"torchvision_resnet18={weights}"]) == 0
    told = capsys.readouterr().out
    assert "backbone.conv1.weight 3 -> 1 input channels: sum; in the middle of 7 slices" in told
    assert "100.0% of the encoder's parameters" in told
    for line in (
        "orientation: the weights expect LPS, the data give RAS (adopted by the recipe)",
        "channels: the weights expect (red, green, blue), the data give (image) (allowed by the recipe)",
        "modality: the weights expect photograph, the data give CT (allowed by the recipe)",
    ):
        assert line in told


@pytest.mark.slow
def test_a_fit_from_a_2d_resnet_turns_scans_to_lie_as_pictures(weights, tmp_path, capsys):
    folder = f"--trainer.default_root_dir={tmp_path}"
    assert run(["fit"], f"--model.weights=torchvision_resnet18={weights}", "--trainer.limit_val_batches=0", folder) == 0
    told = capsys.readouterr().out
    assert "adopted: orientation LPS instead of RAS" in told
    assert "allowed: modality: the weights expect photograph, the data give CT" in told
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    contract = torch.load(checkpoint, weights_only=True)["lightning_atlas"]["contract"]
    assert contract["orientation"] == "LPS"


@pytest.mark.slow
def test_a_bare_file_of_2d_weights_asks_for_the_orientation_of_pictures(weights, tmp_path, capsys):
    folder = f"--trainer.default_root_dir={tmp_path}"
    assert run(["fit"], f"--model.weights={weights}", "--model.contract=match", folder) == 2
    assert "expect orientation LPS, not RAS" in capsys.readouterr().err
