"""`test RECIPE --weights WEIGHTS`: scores without training, in the classes that weights and recipe share."""

import csv
from dataclasses import replace

import pytest
import torch

from lightning_atlas.cli import main
from lightning_atlas.contract import Contract
from lightning_atlas.intake.exported import write_export
from lightning_atlas.networks import UNet

CONTRACT = Contract(
    classes=("liver", "spleen", "kidney_left"),
    modality="MR",
    orientation="RAS",
    spacing_mm=(6.0, 6.0, 6.0),
    normalization="percentiles",
    window=(0.5, 99.5),
    range=(0.0, 1.0),
)
RECIPE = """\
model:
  class_path: TransferLearning
  init_args:
    network: {class_path: UNet, init_args: {features: [2, 4]}}
    task:
      class_path: Segmentation
      init_args: {window: {class_path: SlidingWindow, init_args: {patch: [32, 32, 16], overlap: 0}}}
data:
  class_path: ScanDataModule
  init_args:
    source: {class_path: EmbeddedScan, init_args: {scan: abdomen_mr}}
    classes: {spleen: [spleen], liver: [liver], kidney: [kidney_*], aorta: [aorta]}
    preprocess: [{class_path: torchio.ToCanonical}]
trainer: {accelerator: cpu, devices: 1, callbacks: [{class_path: NativeScores}]}
"""


@pytest.fixture
def score(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")

    def run(weights, *words):
        capsys.readouterr()
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        folder.mkdir()
        words = [f"--trainer.default_root_dir={folder}", *words]
        code = main(["test", "recipe.yaml", "--weights", str(weights), *words])
        return code, *capsys.readouterr()

    return run


def export(folder, contract=CONTRACT, chosen=1):
    """Weights that put every voxel in one class."""
    outputs = len(contract.classes) + (not contract.overlapping)
    network = UNet(out_channels=outputs, features=(2, 4))
    for tensor in network.head.parameters():
        torch.nn.init.zeros_(tensor)
    bias = dict(network.head.named_parameters())
    next(each for name, each in bias.items() if name.endswith("bias")).data[chosen] = 5.0
    spec = {"class_path": "lightning_atlas.networks.UNet", "init_args": {"out_channels": outputs, "features": [2, 4]}}
    names = ("preprocessing", "training", "metrics", "environment", "licence", "citation", "source")
    task = {"kind": "exclusive", "window": {"patch": [16, 16, 16], "overlap": 0.0}}
    write_export(folder, network, contract, spec, dict.fromkeys(names) | {"task": task})
    return folder


def scores(folder, name="scores.csv"):
    (path,) = folder.rglob(name)
    with path.open(encoding="utf-8", newline="") as file:
        return {row["class"]: float(row["dice"]) for row in csv.DictReader(file)}


def test_shared_classes_are_scored_by_name_and_the_others_are_named(score, tmp_path):
    code, out, err = score(export(tmp_path / "weights", chosen=1))  # output 1: the weights' first class
    assert code == 0, err
    assert "classes scored: spleen, liver" in out
    assert "not scored: kidney: the weights lack kidney_right" in out
    assert "not scored: aorta: the weights have no such class" in out
    assert "adopted: spacing_mm (6, 6, 6)" in out
    assert "weights as it is, without training" in out
    found = scores(tmp_path)
    assert found["spleen"] == 0.0  # everything is liver, whatever its place in the recipe
    assert found["liver"] > 0.05
    native = scores(tmp_path, "native_scores.csv")
    assert native["liver"] == pytest.approx(found["liver"], rel=0.1)
    assert native["liver"] != found["liver"]


def refused(score, weights, *words):
    code, _, err = score(weights, *words)
    assert code == 2
    assert "Traceback" not in err
    return err


def test_weights_of_another_modality_are_refused_unless_the_recipe_allows_it(score, tmp_path):
    folder = export(
        tmp_path / "weights", replace(CONTRACT, modality="CT", normalization="window", window=(-200.0, 300.0))
    )
    assert "modality CT, not MR" in refused(score, folder)
    code, out, err = score(folder, "--model.allow=[modality,normalization,window]")
    assert code == 0, err
    assert "allowed: modality" in out


def test_a_voxel_size_that_nobody_stated_is_asked_for(score, tmp_path):
    folder = export(tmp_path / "weights", replace(CONTRACT, spacing_mm=None))
    assert "the voxel size that these weights were trained on is not known; say one" in refused(score, folder)
    code, _, err = score(folder, "--data.preprocess=[{class_path: torchio.Resample, init_args: {target: 6}}]")
    assert code == 0, err


def test_weights_without_any_shared_class_are_refused(score, tmp_path):
    folder = export(tmp_path / "weights", replace(CONTRACT, classes=("brain", "lung", "heart")))
    assert "the weights tell none of the recipe's classes (spleen, liver, kidney, aorta)" in refused(score, folder)


def test_a_recipe_says_on_which_scans(tmp_path, capsys):
    assert main(["test", "--weights", "starter_abdomen_ct"]) == 2
    assert "write `test RECIPE --weights starter_abdomen_ct`" in capsys.readouterr().err
