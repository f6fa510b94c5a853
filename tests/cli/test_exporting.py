"""From a run to a folder that somebody else starts from or segments with."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import lightning_atlas.data
from lightning_atlas.cli import main
from lightning_atlas.data.embedded import HERE as EMBEDDED
from lightning_atlas.intake import read_weights
from lightning_atlas.intake.weights import read_file

RECIPE = """\
model:
  class_path: SupervisedPretraining
  init_args:
    network: {class_path: UNet, init_args: {features: [4, 8]}}
    task:
      class_path: Segmentation
      init_args: {window: {class_path: SlidingWindow, init_args: {patch: [32, 32, 16], overlap: 0.1, mirror: true}}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-2}}
data:
  class_path: ScanDataModule
  init_args:
    source: {class_path: SimulatedCohort, init_args: {scan: spine_ct, train: 2, val: 0, test: 2, displacement_mm: 3}}
    classes: {corpus: ["vertebra_corpus*"], arcus: [arcus_vertebrae]}
    preprocess:
      - {class_path: torchio.ToCanonical}
      - {class_path: torchio.Resample, init_args: {target: 4}}
      - {class_path: torchio.Clamp, init_args: {out_min: -200, out_max: 800}}
      - {class_path: torchio.RescaleIntensity, init_args: {out_min_max: [0, 1], in_min_max: [-200, 800]}}
    augment: [{class_path: torchio.RandomFlip, init_args: {axes: [0]}}]
    patches: {class_path: Patches, init_args: {size: [32, 32, 16], per_epoch: 12}}
    batch_size: 2
trainer: {accelerator: cpu, devices: 1, max_epochs: 1, enable_model_summary: false, enable_progress_bar: false}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fit of six steps in the folder that is returned."""
    root = tmp_path_factory.mktemp("private")
    (root / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    assert main(["fit", str(root / "tiny.yaml"), f"--trainer.default_root_dir={root}"]) == 0
    (checkpoint,) = root.rglob("last.ckpt")
    return checkpoint.parents[1]


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("exports") / "spine"
    words = ["--licence", "Apache-2.0", "--citation", "Somebody 2026"]
    assert main(["export", str(run), "--output", str(output), *words]) == 0
    return output


@pytest.fixture
def scans(tmp_path):
    """A folder with one scan that no training saw: an embedded one, cropped and reversed."""
    (tmp_path / "scans").mkdir()
    scan = nib.Nifti1Image.from_filename(EMBEDDED / "spine_ct.nii.gz")
    nib.save(scan.slicer[::-1, :, : scan.shape[2] - 9], tmp_path / "scans" / "new.nii.gz")
    return tmp_path / "scans"


def card_of(folder):
    return json.loads((folder / "atlas.json").read_text(encoding="utf-8"))


def test_the_folder_has_the_runs_tensors_contract_and_network(run, folder):
    checkpoint, source = read_file(run / "checkpoints" / "last.ckpt"), read_weights(str(folder))
    assert source.tensors.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(source.tensors[name], each) for name, each in checkpoint.tensors.items())
    assert source.contract == checkpoint.contract
    assert source.network
    assert source.network["class_path"] == "lightning_atlas.networks.UNet"
    assert source.network["init_args"]["out_channels"] == 3


def test_the_card_tells_what_the_run_knows(folder):
    card = card_of(folder)
    assert card["format"] == 1
    assert card["classes"] == ["corpus", "arcus"]
    assert card["task"] == {
        "kind": "exclusive",
        "window": {"patch": [32, 32, 16], "overlap": 0.1, "batch_size": 1, "mirror": True},
    }
    assert card["training"]["subjects"] == {"train": 2, "val": 0, "test": 2}
    assert "simulated" in card["training"]["description"]
    assert card["training"]["steps"] == 6
    mean = card["metrics"]["mean"]
    assert (card["metrics"]["split"], mean["n"]) == ("test", 2)
    assert mean["low"] <= mean["dice"] <= mean["high"]
    assert card["environment"]["torch"] == torch.__version__
    text = (folder / "README.md").read_text(encoding="utf-8")
    for part in ("corpus, arcus", "Apache-2.0", "Somebody 2026", "95 % interval", "no medical device", "--weights"):
        assert part in text


def test_no_path_of_this_machine_is_handed_on(run, folder):
    private = [str(run.parents[2]), str(Path.home()), str(Path(lightning_atlas.data.__file__).parents[2])]
    content = b"".join(path.read_bytes() for path in folder.iterdir()).decode(errors="replace")
    assert not [path for path in private if path in content]


def predicted(words, scans, output):
    assert main(["predict", *words, "--input", str(scans), "--output", str(output)]) == 0
    return nib.Nifti1Image.from_filename(output / "new.nii.gz")


def test_the_export_segments_exactly_as_its_run(run, folder, scans, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    of_run = predicted([str(run), "--trainer.accelerator=cpu"], scans, tmp_path / "run")
    alone = predicted(
        ["--weights", str(tmp_path / "elsewhere"), "--trainer.accelerator=cpu"], scans, tmp_path / "alone"
    )
    own = nib.Nifti1Image.from_filename(scans / "new.nii.gz")
    assert np.array_equal(np.asarray(of_run.dataobj), np.asarray(alone.dataobj))
    assert np.array_equal(np.asarray(alone.affine), np.asarray(own.affine))
    assert np.unique(np.asarray(alone.dataobj)).size > 1
    assert (tmp_path / "alone" / "labels.json").read_bytes() == (tmp_path / "run" / "labels.json").read_bytes()


def test_a_fit_starts_from_the_folder(run, folder, tmp_path, capsys):
    words = [f"--model.weights={folder}", "--trainer.max_steps=1", f"--trainer.default_root_dir={tmp_path}"]
    recipe = run.parents[2] / "tiny.yaml"
    assert main(["fit", str(recipe), *words]) == 0
    count = len(read_weights(str(folder)).tensors)
    assert f"{count} loaded, 0 renamed, 0 reshaped, 0 fresh" in capsys.readouterr().out
    (again,) = (path.parents[1] for path in tmp_path.rglob("last.ckpt"))
    assert main(["export", str(again), "--output", str(tmp_path / "child"), "--half"]) == 0
    child = card_of(tmp_path / "child")
    assert child["source"] == {
        "name": "spine",
        "sha256": card_of(folder)["weights"]["sha256"],
        "licence": "Apache-2.0",
    }
    assert child["weights"]["precision"] == "float16"
    assert "no licence was given" in capsys.readouterr().out


def test_the_bundle_is_made_of_the_same_tensors(run, folder, tmp_path):
    assert main(["export", str(run), "--output", str(tmp_path / "bundle"), "--bundle"]) == 0
    state = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    source = read_weights(str(folder))
    assert state.keys() == source.tensors.keys()
    assert all(torch.equal(state[name], each) for name, each in source.tensors.items())


def test_mistakes_are_told_in_few_lines(run, folder, tmp_path, capsys):
    for words, told in {
        ("nowhere", "--output", "x"): "nowhere is no run",
        (str(run), "--outpt", "x"): "--output",
        (str(run), "--output", str(folder)): "say --overwrite",
        (str(run), "--output", "x", "--licence", "do what you want!"): "SPDX",
        (str(run), "--output", "x", "--hlaf"): "did you mean --half?",
    }.items():
        capsys.readouterr()
        assert main(["export", *words]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert len(error.splitlines()) <= 5
    assert not (tmp_path / "x").exists()
