import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from dataset_files import deeplesion, lidc

from lightning_atlas.cli import main
from lightning_atlas.data import Manifest, Patches, ScanDataModule, ScanLayout, SourceBoxes, Splits, Targets

VALUES = {"liver": 1, "spleen": 2}


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """A folder of six scans, 24 x 24 x 16 voxels of 3 mm, each a little different."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_ATLAS_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / "mes scans" / part).mkdir(parents=True)
    for number in range(6):
        label = np.zeros((24, 24, 16), np.uint8)
        label[4 : 14 + number % 2, 4:12, 3:12] = 1
        label[16:21, 14:20, 4:10] = 2
        image = (100 * label + random.normal(0, 10, label.shape)).astype(np.int16)
        affine = np.diag([-3.0, -3, 3, 1])
        nib.Nifti1Image(image, affine).to_filename(tmp_path / "mes scans" / "images" / f"p{number}.nii.gz")
        nib.Nifti1Image(label, affine).to_filename(tmp_path / "mes scans" / "labels" / f"p{number}.nii.gz")
    return tmp_path / "mes scans"


def prepare(*words):
    return main(["prepare", *map(str, words)])


def test_a_sound_folder_is_checked(scans, capsys):
    assert prepare(scans, "--values", json.dumps(VALUES), "--check") == 0
    told = capsys.readouterr().out
    assert "the layout is taken to be pair" in told
    assert "6 cases: 0 defects" in told
    assert not list(scans.parent.glob("*.json"))


def test_defects_come_one_a_line_and_end_with_code_2(scans, capsys):
    half = scans / "images" / "p1.nii.gz"
    half.write_bytes(half.read_bytes()[:-40])
    (scans / "labels" / "p2.nii.gz").unlink()
    nib.Nifti1Image(np.full((24, 24, 16), 7, np.uint8), np.diag([-3.0, -3, 3, 1])).to_filename(
        scans / "labels" / "p3.nii.gz"
    )
    words = (scans, "--values", json.dumps(VALUES))
    assert prepare(*words, "--check") == 2
    caught = capsys.readouterr()
    for name in ("images/p1.nii.gz", "images/p2.nii.gz", "labels/p3.nii.gz"):
        assert len([line for line in caught.out.splitlines() if line.startswith(str(scans / name))]) == 1
    assert "--skip-bad" in caught.err
    assert "Traceback" not in caught.out + caught.err
    assert prepare(*words, "--skip-bad") == 0
    assert "left out: p1, p2, p3" in capsys.readouterr().out
    subjects = json.loads((scans.parent / "mes scans.json").read_text(encoding="utf-8"))["subjects"]
    assert [each["subject"] for each in subjects] == ["p0", "p4", "p5"]


def test_a_dry_run_reads_headers_and_writes_nothing(scans, capsys):
    before = {path: path.stat().st_mtime_ns for path in scans.parent.rglob("*")}
    assert prepare(scans, "--values", json.dumps(VALUES), "--dry-run", "--recipe", "my.yaml") == 0
    assert {path: path.stat().st_mtime_ns for path in scans.parent.rglob("*")} == before
    told = capsys.readouterr().out
    assert "6 scans in 12 files" in told
    assert "disk: at most" in told


def test_two_commands_lead_from_a_folder_to_a_fit(scans, capsys):
    values = scans.parent / "values.json"
    values.write_text(json.dumps(VALUES), encoding="utf-8")
    words = (scans, "--values", values, "--modality", "CT", "--recipe", "my.yaml", "--weights", "starter_abdomen_ct")
    assert prepare(*words) == 0
    told = capsys.readouterr().out
    assert "6 prepared" in told
    assert "next: lightning-atlas fit my.yaml" in told
    for name in ("my.json", "my_fingerprint.json", "my_fingerprint.png", "my.yaml"):
        assert (scans.parent / name).is_file()
    recipe = yaml.safe_load((scans.parent / "my.yaml").read_text(encoding="utf-8"))
    assert recipe["model"]["init_args"]["weights"] == "starter_abdomen_ct"
    small = ["--data.patches.per_epoch=2", "--data.patches.size=[16,16,16]", "--data.batch_size=1"]
    assert main(["fit", "my.yaml", *small, "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]) == 0
    assert "0 prepared in" in capsys.readouterr().out
    assert prepare(*words) == 2
    assert "my.json exists: write --overwrite" in capsys.readouterr().err
    assert prepare(*words, "--overwrite") == 0
    assert prepare("my.yaml") == 0
    assert "0 prepared in" in capsys.readouterr().out


def test_a_manifest_is_not_written_over_with_less(scans, capsys):
    assert prepare(scans, "--values", json.dumps(VALUES), "--output", "all.json") == 0
    (scans / "images" / "p1.nii.gz").write_bytes(b"")
    assert prepare("all.json", "--skip-bad") == 2
    assert "would lose or change subjects; name another manifest" in capsys.readouterr().err
    assert prepare("all.json", "--skip-bad", "--output", "some.json") == 0


CROPS = {"targets": Targets("class", ["benign", "malign"])}
PUBLISHED = {
    "lidc": (lidc, {**CROPS, "fold": 1, "splits": Splits()}, "lidc_classification"),
    "lidc_by_nodule": (lidc, {**CROPS, "splits": Splits(val_share=0.0)}, "lidc_classification"),
    "deeplesion": (deeplesion, {"boxes": SourceBoxes(["lesion"], planar=True)}, "deeplesion"),
}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Makes the files of a layout in the folder `PATH`."""
    monkeypatch.setenv("LIGHTNING_ATLAS_CACHE", str(tmp_path / "cache"))

    def made(layout):
        PUBLISHED[layout][0](Path("PATH"))
        if layout == "lidc_by_nodule":
            rows = ["0,lidc0_0.npz,lidc4_1.npz", *(f"{n},lidc{n}_0.npz,lidc{n}_1.npz" for n in (1, 2, 3))]
            Path("PATH", "train_test_split.csv").write_text("\n".join([",train,test", *rows]), encoding="utf-8")
        return "PATH", "--layout", layout

    return made


def opened(source, changes):
    """Return the scans of each split as the data module gives them whole."""
    patches = Patches((16, 16, 8), per_epoch=1, foreground=0.0)
    data = ScanDataModule(source, patches=patches, batch_size=1, **changes)
    data.prepare_data()
    data.setup(None)
    return [data.whole(split, n) for split, cases in data.opened.items() for n in range(len(cases))]


@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_table_of_crops_or_slices_opens_as_the_layout_does(published, layout, capsys):
    words = published(layout)
    assert prepare(*words, "--check") == 0
    assert re.search(r"[1-9]\d* cases: 0 defects", capsys.readouterr().out)
    assert prepare(*words, "--output", "table.json") == 0
    sources = ScanLayout(Path("PATH"), layout), Manifest(Path("table.json"))
    direct, listed = (opened(each, PUBLISHED[layout][1]) for each in sources)
    assert len(direct) > 2
    for one, other in zip(direct, listed, strict=True):
        assert one["subject"] == other["subject"]
        for key in {"image", "label", "affine", "target"} & one.keys():
            assert torch.equal(one[key], other[key])
        for boxes, same in zip(one.get("boxes", ()), other.get("boxes", ()), strict=True):
            assert len(boxes.corners)
            assert torch.equal(boxes.corners, same.corners)
    assert ("target" if "lidc" in layout else "boxes") in direct[0]
    assert len(list(Path("cache", "prepared").iterdir())) == len(direct)  # what one prepared is what the other opens


@pytest.mark.parametrize("layout", PUBLISHED)
def test_crops_and_slices_have_a_recipe_already(published, layout, capsys):
    words = published(layout)
    assert prepare(*words, "--recipe", "my.yaml") == 2
    told = capsys.readouterr().err
    assert "leave out --recipe" in told
    assert not list(Path().glob("my*"))
    command = told.splitlines()[-1].split()
    assert command[:2] == ["fit", f"target/{PUBLISHED[layout][2]}"]
    assert main([*command, "--print_config"]) == 0
    assert f"layout: {layout}\n" in capsys.readouterr().out


def test_a_dry_run_counts_every_plane_of_a_slice(published, capsys):
    assert prepare(*published("deeplesion"), "--dry-run") == 0
    told = capsys.readouterr().out
    assert "3 scans in 15 files" in told  # five slices of each are there
    assert f"disk: at most {3 * 64 * 64 * 9 * 5 / 1000:.1f} kB" in told


def test_a_paired_structure_is_parted_into_sides(scans, capsys):
    for path in (scans / "labels").iterdir():
        label = np.zeros((24, 24, 16), np.uint8)
        label[3:7, 8:14, 4:12] = label[16:20, 8:14, 4:12] = 1
        nib.Nifti1Image(label, np.diag([-3.0, -3, 3, 1])).to_filename(path)
    assert prepare(scans, "--values", '{"kidney": 1}', "--split-sides", "kidney", "--output", "sided.json") == 0
    told = json.loads((scans.parent / "sided.json").read_text(encoding="utf-8"))["subjects"][0]["masks"]
    assert sorted(told) == ["kidney_left", "kidney_right"]
    left, right = (nib.Nifti1Image.from_filename(scans.parent / told[f"kidney_{side}"]) for side in ("left", "right"))
    centre = [np.argwhere(np.asarray(each.dataobj) > 0).mean(axis=0)[0] for each in (left, right)]
    assert centre == [17.5, 4.5]  # columns run to the patient's left in these files


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nowhere",), "there is no nowhere"),
        (("--check",), "the following arguments are required: path"),
        ((".", "--layout", "bidz"), "invalid choice: 'bidz'"),
        ((".", "--memory", "much"), "'much' is no size; write 24GB"),
        ((".", "--vocabulary", "amoss"), "no vocabulary is called 'amoss'; near: amos"),
        ((".", "--values", "[1]"), "does not say which value each name has"),
        ((".",), "is of no known layout"),
    ],
)
def test_mistakes_are_told_in_few_lines(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prepare(*words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) <= 5
