"""Classes that overlap, from a recipe to files that are read again as data."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from lightning_atlas.cli import main
from lightning_atlas.data import Classes, ScanDataModule, ScanLayout
from lightning_atlas.data.embedded import HERE

NESTED = {
    "canal": ["spinal_canal", "spinal_cord"],
    "spinal_cord": ["spinal_cord"],
    "articular": ["*_articular_*"],
    "inferior": ["inferior_articular_*"],
}
RECIPE = """
model:
  class_path: SupervisedPretraining
  init_args:
    network: {class_path: UNet, init_args: {features: [4, 8]}}
    task:
      class_path: MultiLabelSegmentation
      init_args: {window: {class_path: SlidingWindow, init_args: {patch: [32, 32, 32], overlap: 0, on_host: true}}}
data:
  class_path: ScanDataModule
  init_args:
    source:
      class_path: Mixture
      init_args:
        datasets:
          dense:
            {class_path: SimulatedCohort, init_args: {scan: spine_mr, train: 1, val: 1, test: 1}}
          partial:
            class_path: SimulatedCohort
            init_args: {scan: spine_mr, train: 1, val: 1, test: 1, seed: 5, drawn: [spinal_cord], drawn_planes: [9]}
    preprocess:
      - {class_path: torchio.ToCanonical}
      - {class_path: torchio.Resample, init_args: {target: 3}}
      - {class_path: torchio.RescaleIntensity, init_args: {out_min_max: [0, 1], percentiles: [0.5, 99.5]}}
    patches: {class_path: Patches, init_args: {size: [16, 16, 16], per_epoch: 2}}
trainer: {accelerator: cpu, max_steps: 1, num_sanity_val_steps: 1, callbacks: [{class_path: NearestPlaneBaseline}]}
"""


def write_recipe(folder: Path, exclusive: bool = False) -> Path:
    recipe = yaml.safe_load(RECIPE)
    chosen = {"class_path": "Classes", "init_args": {"names": NESTED, "exclusive": exclusive}}
    if exclusive:
        chosen["init_args"]["names"] = {"spinal_cord": ["spinal_cord"]}
    recipe["data"]["init_args"]["classes"] = chosen
    recipe["trainer"]["default_root_dir"] = str(folder)
    path = folder / "nested.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_nested_classes_go_from_a_recipe_to_masks_that_are_data_again(tmp_path, capsys):
    assert main(["fit", f"--config={write_recipe(tmp_path)}"]) == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    run = checkpoint.parent.parent
    kept = torch.load(checkpoint, weights_only=True)
    assert kept["lightning_atlas"]["contract"]["overlapping"]
    assert kept["state_dict"]["network.head.weight"].shape[0] == len(NESTED)
    assert [row["class"] for row in rows(run / "scores.csv")] == [*NESTED, "mean"]
    tested = [(row["dataset"], row["class"]) for row in rows(run / "datasets.csv")]
    assert tested[:5] == [("dense", name) for name in (*NESTED, "mean")]
    assert (run / "overlay.png").is_file()
    assert "copy of the nearest drawn plane" in capsys.readouterr().out

    scans, output = tmp_path / "new scans", tmp_path / "predictions"
    scans.mkdir()
    (scans / "anna.nii.gz").write_bytes((HERE / "spine_mr.nii.gz").read_bytes())
    assert main(["predict", str(run), "--input", str(scans), "--output", str(output)]) == 0
    masks = {name: output / "anna" / "segmentations" / f"{name}.nii.gz" for name in NESTED}
    assert {path.name for path in (output / "anna").rglob("*.nii.gz")} == {
        "combined_labels.nii.gz",
        *(path.name for path in masks.values()),
    }
    drawn = {name: np.asarray(nib.Nifti1Image.from_filename(path).dataobj) for name, path in masks.items()}
    assert {value for mask in drawn.values() for value in np.unique(mask)} == {0, 1}

    (output / "anna" / "mri.nii.gz").write_bytes((scans / "anna.nii.gz").read_bytes())
    data = ScanDataModule(ScanLayout(output), Classes(exclusive=False), [])
    case = data.whole("train", 0)
    assert data.contract.overlapping
    assert set(data.contract.classes) == set(NESTED)
    assert case["drawn"][0, 1:].all()
    for number, name in enumerate(data.contract.classes):
        inside = case["states"][0, :, number][case["label"][0].long()] == 1
        assert np.array_equal(inside.numpy(), drawn[name] == 1), name


@pytest.mark.parametrize(
    ("exclusive", "task", "told"),
    [
        (True, "MultiLabelSegmentation", "exclusive: false}}"),
        (False, "Segmentation", "class_path: MultiLabelSegmentation"),
    ],
)
def test_a_task_of_the_other_kind_stops_before_training(exclusive, task, told, tmp_path, capsys):
    recipe = write_recipe(tmp_path, exclusive)
    assert main(["fit", f"--config={recipe}", f"--model.task.class_path={task}"]) != 0
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
