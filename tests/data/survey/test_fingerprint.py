import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio
from PIL import Image

from lightning_atlas.data import Case, DrawnOn, Mark
from lightning_atlas.data.embedded import embedded_case
from lightning_atlas.data.survey.fingerprint import FEWEST, Fingerprint, fingerprint, measure
from lightning_atlas.data.survey.fingerprint_case import LEVELS, CaseFingerprint, Channel, Intensities, Structure
from lightning_atlas.data.survey.fingerprint_sheet import write_sheet


def scan(folder, name, volume, boxes, affine=None):
    """Writes a scan with boxes as labels; returns its case."""
    affine = np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine
    label = np.zeros(volume.shape, dtype=np.uint8)
    for value, box in enumerate(boxes.values(), 1):
        label[box] = value
    for kind, data in (("", volume.astype(np.float32)), ("_labels", label)):
        tio.ScalarImage(tensor=torch.from_numpy(data)[None], affine=affine).save(folder / f"{name}{kind}.nii.gz")
    values = {each: value for value, each in enumerate(boxes, 1)}
    return Case(name, "train", folder / f"{name}.nii.gz", folder / f"{name}_labels.nii.gz", values, modality="CT")


def made_up(subject, spacing=1.0, volume=100.0, intensity=40.0, **changes):
    """A fingerprint of a scan that was never made."""
    seen = Intensities(tuple(intensity + 100.0 * (level - 50) / 50 for level in LEVELS), intensity, 60.0)
    case = CaseFingerprint(
        subject=subject,
        split="train",
        patient=subject,
        dataset="",
        modality="CT",
        vocabulary=None,
        shape=(100, 100, 50),
        spacing_mm=(spacing, spacing, 2.0),
        orientation="RAS",
        channels={"image": Channel(seen, seen, (0.0,) * 48)},
        drawn_axis="k",
        planes=50,
        structures={"liver": Structure(volume, 50, 20, 40.0)},
    )
    return replace(case, **changes)


BOXES = {"liver": np.s_[2:8, 1:9, 3:10], "cyst": np.s_[2:4, 2:7, 4:10]}


def test_the_numbers_are_those_of_what_was_written(tmp_path):
    volume = np.random.default_rng(0).normal(50, 20, (12, 10, 16))
    found = measure(scan(tmp_path, "a", volume, BOXES))
    stored = volume.astype(np.float32).astype(np.float64)
    liver = np.zeros(volume.shape, dtype=bool)
    liver[BOXES["liver"]] = True
    both = liver.copy()
    both[BOXES["cyst"]] = True
    liver[BOXES["cyst"]] = False
    assert (found.shape, found.spacing_mm, found.orientation) == ((12, 10, 16), (2, 3, 4), "RAS")
    assert found.extent_mm == (24, 30, 64)
    channel = found.channels["image"]
    assert channel.everywhere.percentiles == pytest.approx(np.percentile(stored, LEVELS), abs=1e-5)
    assert channel.inside is not None
    assert channel.inside.mean == pytest.approx(stored[both].mean())
    assert channel.inside.std == pytest.approx(stored[both].std())
    assert found.structures["liver"].volume_ml == pytest.approx(liver.sum() * 24 / 1000)
    cyst = found.structures["cyst"]
    assert (cyst.thinnest_voxels, cyst.thinnest_mm, cyst.drawn_planes) == (2, pytest.approx(4), 16)
    assert found.overlaps == ()


@pytest.mark.parametrize("flip", [(), (0,), (0, 2)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_how_a_file_is_stored_changes_its_orientation_only(tmp_path, order, flip):
    volume = np.arange(12 * 10 * 16, dtype=np.float64).reshape(12, 10, 16)
    plain = measure(scan(tmp_path, "a", volume, BOXES), picture=True)
    image, label = (tio.ScalarImage(tmp_path / f"a{kind}.nii.gz") for kind in ("", "_labels"))
    for kind, each in (("", image), ("_labels", label)):
        data, affine = each.numpy()[0].transpose(order), each.affine[:, [*order, 3]]
        for axis in flip:
            data = np.flip(data, axis)
            affine = affine @ flipped(axis, data.shape[axis])
        tio.ScalarImage(tensor=torch.from_numpy(data.copy())[None], affine=affine).save(tmp_path / f"b{kind}.nii.gz")
    values = {"liver": 1, "cyst": 2}
    stored = Case("a", "train", tmp_path / "b.nii.gz", tmp_path / "b_labels.nii.gz", values, modality="CT")
    turned = measure(stored, picture=True)
    assert replace(turned, orientation="RAS") == plain
    assert turned.picture is not None
    assert plain.picture is not None
    assert np.array_equal(turned.picture.structures, plain.picture.structures)


def flipped(axis, size):
    matrix = np.eye(4)
    matrix[axis, axis], matrix[axis, 3] = -1, size - 1
    return matrix


def test_the_picture_has_the_patients_right_at_its_left(tmp_path):
    volume = np.zeros((12, 10, 16))
    volume[9:] = 100  # i runs to the right
    found = measure(scan(tmp_path, "a", volume, {"front": np.s_[:, 8:, 5]}), picture=True)
    picture = found.picture
    assert picture is not None
    assert picture.image.shape == (10, 12)
    assert picture.image[:, :3].min() > picture.image[:, 3:].max()
    assert (picture.structures[8:] == 1).all()
    assert (picture.structures[:8] == 0).all()
    assert picture.spacing_mm == (3, 2)


def test_large_scans_are_sampled_and_the_sample_is_always_the_same(tmp_path):
    volume = np.random.default_rng(0).normal(0, 1, (70, 60, 50))
    case = scan(tmp_path, "a", volume, {"all": np.s_[:]})
    found = measure(case)
    assert found == measure(case)
    for seen in (found.channels["image"].everywhere, found.channels["image"].inside):
        assert seen is not None
        assert seen.mean == pytest.approx(0, abs=0.02)
        assert seen.percentiles[LEVELS.index(99)] == pytest.approx(2.33, abs=0.1)


def test_drawn_planes_and_names_that_nobody_drew(tmp_path):
    case = scan(tmp_path, "a", np.zeros((12, 10, 16)), BOXES)
    sparse = measure(replace(case, drawn_on=(DrawnOn(planes=(4, 7, 11)),), drawn=("liver",)))
    assert set(sparse.structures) == {"liver"}
    assert (sparse.structures["liver"].drawn_planes, sparse.planes) == (3, 16)
    absent = measure(replace(case, values={"liver": 1, "cyst": 2, "stone": 3}))
    assert absent.structures["stone"] == Structure(0.0, 16, 0, 0.0)


def test_structures_that_share_voxels_are_told(tmp_path):
    case = scan(tmp_path, "a", np.zeros((12, 10, 16)), BOXES)
    scan(tmp_path, "b", np.zeros((12, 10, 16)), {"tumor": np.s_[6:10, 1:4, 3:5]})
    masks = {"tumor": Mark(tmp_path / "b_labels.nii.gz")}
    assert measure(replace(case, masks=masks)).overlaps == (("liver", "tumor"),)


def test_what_lies_outside_a_window():
    seen = Intensities(tuple(map(float, LEVELS)), 50.0, 29.0)  # uniform from 0 to 100
    assert seen.share_outside(10.0, 80.0) == pytest.approx(0.3)
    assert seen.share_outside(-50.0, 200.0) == 0
    assert seen.share_outside(150.0, 200.0) == 1


def test_outliers_are_named():
    usual = [made_up(f"s{n}", 1.0 + 0.01 * n, 100.0 + 3 * n, 40.0 + n) for n in range(8)]
    odd = [
        made_up("thick", spacing=4.0),
        made_up("small", volume=5.0),
        made_up("bright", intensity=900.0),
        made_up("bright_mr", intensity=900.0, modality="MR"),
    ]
    found = {(each.subject, each.what.split()[0]) for each in Fingerprint((*usual, *odd)).outliers}
    assert found == {("thick", "spacing"), ("small", "volume"), ("bright", "median")}
    text = "\n".join(Fingerprint((*usual, *odd)).report())
    assert "thick: spacing along i (mm) 4" in text
    assert "small: volume of liver (ml) 5" in text


def test_few_scans_and_equal_scans_have_no_outliers():
    assert Fingerprint(tuple(made_up(f"s{n}", 1.0 + n) for n in range(FEWEST - 1))).outliers == ()
    assert Fingerprint(tuple(made_up(f"s{n}", 1.0 + 0.02 * (n % 2)) for n in range(9))).outliers == ()


def test_json_brings_back_the_same(tmp_path):
    cases = [embedded_case("spine_mr", "train"), replace(embedded_case("spine_ct", "val"), drawn=("vertebra_corpus",))]
    found = fingerprint(cases, progress=False)
    path = tmp_path / "fingerprint.json"
    found.write(path)
    assert Fingerprint.read(path) == found
    assert json.loads(path.read_text(encoding="utf-8"))["summary"] == json.loads(json.dumps(found.summary))


def test_another_file_is_no_fingerprint(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"cases": []}', encoding="utf-8")
    with pytest.raises(ValueError, match="no fingerprint of version 1"):
        Fingerprint.read(path)


def test_the_table_is_narrow_and_plain():
    long = made_up(
        "s", structures={"a_very_long_name_of_a_structure_that_nobody_will_read": Structure(1e6, 1, 1, 0.01)}
    )
    lines = Fingerprint((made_up("a"), made_up("b", shape=(1000, 2000, 3000)), long)).report()
    assert max(map(len, lines)) <= 110
    assert "".join(lines).isascii()
    voxels = next(line for line in lines if line.split()[:2] == ["voxels", "i"])
    assert voxels.split()[2:] == ["100", "100", "1000"]


@pytest.mark.slow
def test_processes_give_the_same():
    cases = [embedded_case(name, "train") for name in ("spine_mr", "spine_ct", "chest_ct")]
    assert fingerprint(cases, processes=2, progress=False) == fingerprint(cases, processes=1, progress=False)


def test_the_sheet_is_written(tmp_path):
    found = fingerprint([embedded_case("spine_mr", "train"), embedded_case("chest_ct", "train")], progress=False)
    write_sheet(found, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        colours = len(picture.convert("RGB").getcolors(2**24) or ())
        assert min(picture.size) > 800
    assert colours > 200
    assert Path(tmp_path / "sheet.png").stat().st_size < 2_000_000


def test_a_sheet_without_pictures_and_labels(tmp_path):
    bare = made_up("a", structures={}, channels={"image": Channel(made_up("b").middle, None, (0.02,) * 48)})
    write_sheet(Fingerprint((bare,)), tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
