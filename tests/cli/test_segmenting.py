"""A person who never trains segments: from a folder or a name alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from lightning_atlas.cli import main
from lightning_atlas.contract import Contract
from lightning_atlas.intake.exported import write_export
from lightning_atlas.networks import UNet

FORMATS = Path(__file__).parents[1] / "intake" / "formats"
CPU = "--trainer.accelerator=cpu"


@pytest.fixture
def scans(tmp_path):
    """The scan of `tests/intake/test_exported.py`, on voxels of 3 mm."""
    i, j, k = torch.meshgrid(*(torch.arange(side) for side in (24, 20, 16)), indexing="ij")
    values = (300 * torch.sin(i / 4) * torch.cos(j / 5) + 150 * torch.sin(k / 3) - 50).round()
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(values.short().numpy(), np.diag([3.0, 3.0, 3.0, 1.0])), tmp_path / "scans" / "wave.nii.gz")
    return tmp_path / "scans"


@pytest.fixture
def predict(scans, tmp_path, capsys):
    def run(weights, *words):
        capsys.readouterr()
        places = ["--input", str(scans), "--output", str(tmp_path / "out"), CPU]
        return main(["predict", "--weights", str(weights), *places, *words]), *capsys.readouterr()

    return run


def export(folder, contract, network=None, **changes):
    outputs = len(contract.classes) + (not contract.overlapping)
    spec = {"class_path": "lightning_atlas.networks.UNet", "init_args": {"out_channels": outputs, "features": [2, 4]}}
    facts: dict = dict.fromkeys(
        ("preprocessing", "training", "metrics", "environment", "licence", "citation", "source")
    )
    facts["task"] = {"kind": "exclusive", "window": {"patch": [16, 16, 16], "overlap": 0.0}}
    network = network or UNet(out_channels=outputs, features=(2, 4))
    write_export(folder, network, contract, changes.pop("spec", spec), facts | changes)
    return folder


CONTRACT = Contract(
    classes=("liver", "spleen"),
    modality="CT",
    orientation="RAS",
    spacing_mm=(3.0, 3.0, 3.0),
    normalization="window",
    window=(-200.0, 300.0),
    range=(0.0, 1.0),
)


@pytest.mark.parametrize("number", [1])
def test_a_folder_of_every_format_segments_the_same_for_ever(predict, tmp_path, number):
    code, out, _ = predict(FORMATS / str(number))
    assert code == 0
    assert "2 classes" in out
    expected = json.loads((FORMATS / f"{number}.json").read_text(encoding="utf-8"))["voxels"]
    found = np.bincount(
        np.asarray(nib.Nifti1Image.from_filename(tmp_path / "out" / "wave.nii.gz").dataobj).ravel(), minlength=3
    )
    assert found.tolist() == pytest.approx(list(expected.values()), abs=8)
    names = json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8"))
    assert names == {"0": "background", "1": "liver", "2": "spleen"}


def test_the_preprocessing_follows_from_the_contract_where_none_is_written(predict, scans, tmp_path):
    seen = []

    class Watching(UNet):
        def forward(self, image):
            seen.append(image)
            return super().forward(image)

    folder = export(tmp_path / "weights", replace(CONTRACT, orientation="LPS"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_atlas.networks.UNet", Watching)
        assert predict(folder, "--model.task.init_args.window.init_args.patch=[32,32,16]")[0] == 0
    values = np.asarray(nib.Nifti1Image.from_filename(scans / "wave.nii.gz").dataobj)[::-1, ::-1]
    inside = seen[0][0, 0, 4:28, 6:26].numpy()  # the window pads to its sides
    assert np.allclose(inside, (values.clip(-200, 300) + 200) / 500, atol=1e-3)


def test_overlapping_classes_become_a_mask_each(predict, tmp_path):
    network = UNet(out_channels=2, features=(2, 4))
    for tensor, value in zip(network.head.parameters(), (0.0, 1.0), strict=True):
        torch.nn.init.constant_(tensor, value)  # every voxel is in both
    folder = export(tmp_path / "weights", replace(CONTRACT, overlapping=True), network)
    assert predict(folder)[0] == 0
    for name in CONTRACT.classes:
        mask = nib.Nifti1Image.from_filename(tmp_path / "out" / "wave" / "segmentations" / f"{name}.nii.gz")
        assert np.asarray(mask.dataobj).all()


def test_a_published_name_segments(predict, tmp_path):
    code, out, _ = predict("starter_abdomen_ct", "--model.task.init_args.window.init_args.patch=[24,24,16]")
    assert code == 0
    assert "28 classes" in out
    assert nib.Nifti1Image.from_filename(tmp_path / "out" / "wave.nii.gz").shape == (24, 20, 16)


def test_results_of_nnunet_segment(predict, tmp_path):
    assert predict(FORMATS.parent / "nnunet_results")[0] == 0
    assert np.asarray(nib.Nifti1Image.from_filename(tmp_path / "out" / "wave.nii.gz").dataobj).max() <= 2


def test_a_scan_that_training_never_saw_the_like_of_is_refused_until_allowed(predict, tmp_path):
    seen = ((1.0, 1.0, 1.0), (1.5, 1.5, 1.5))
    folder = export(tmp_path / "weights", replace(CONTRACT, seen_spacing_mm=seen))
    code, _, err = predict(folder)
    assert code == 2
    assert "spacing_mm" in err
    assert not (tmp_path / "out" / "wave.nii.gz").exists()
    assert predict(folder, "--allow", "spacing_mm")[0] == 0


def without_classes(tmp_path):
    return export(tmp_path / "weights", replace(CONTRACT, classes=()))


def foreign_network(tmp_path):
    return export(tmp_path / "weights", CONTRACT, spec={"class_path": "os.system", "init_args": {}})


def foreign_transform(tmp_path):
    return export(tmp_path / "weights", CONTRACT, preprocessing=[{"class_path": "torchio.Lambda", "init_args": {}}])


def foreign_task(tmp_path):
    return export(tmp_path / "weights", CONTRACT, task=None)


def bare_file(tmp_path):
    torch.save(UNet(out_channels=3, features=(2, 4)).state_dict(), tmp_path / "bare.pt")
    return tmp_path / "bare.pt"


def other_network(tmp_path):
    network = UNet(out_channels=3, features=(2, 4, 6))
    spec = {"class_path": "lightning_atlas.networks.UNet", "init_args": {"out_channels": 3, "features": [2, 4, 6, 8]}}
    return export(tmp_path / "weights", CONTRACT, network, spec=spec)


def damaged(tmp_path):
    shutil.copytree(FORMATS / "1", tmp_path / "weights")
    (tmp_path / "weights" / "weights.safetensors").unlink()
    return tmp_path / "weights"


REFUSED = {
    without_classes: "no head that could name a voxel",
    foreign_network: "os.system is no network",
    foreign_transform: "torchio.Lambda is no transform",
    foreign_task: "code of its maker",
    bare_file: "does not say of which network it is",
    other_network: "are required",
    damaged: "weights.safetensors is missing",
}


@pytest.mark.parametrize("make", REFUSED)
def test_weights_that_cannot_predict_by_themselves_are_refused_in_few_lines(predict, tmp_path, make):
    code, _, err = predict(make(tmp_path))
    lines = [line for line in err.splitlines() if "Seed set" not in line]
    assert code == 2
    assert REFUSED[make] in err
    assert "Traceback" not in err
    assert len(lines) <= 5
    assert not (tmp_path / "out").exists()


def test_words_that_do_not_go_together_are_told(predict, capsys):
    for words, told in {
        ("--weights", "x"): "--input DIR --output DIR",
        ("quickstart", "--weights", "x", "--input", ".", "--output", "o"): "brings its own network",
        ("--weights", "starter_abdomen", "--input", ".", "--output", "o"): "starter_abdomen_ct",
    }.items():
        capsys.readouterr()
        assert main(["predict", *words]) == 2
        assert told in capsys.readouterr().err
