from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from lightning_atlas.data.cases import Case, DrawnOn, Mark
from lightning_atlas.data.formats import Container
from lightning_atlas.data.slab import Slab
from lightning_atlas.data.survey.checks import check_cases
from lightning_atlas.data.survey.fingerprint import fingerprint
from lightning_atlas.data.survey.one_pass import check_and_measure

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def write(path, array):
    nib.Nifti1Image(array, AFFINE).to_filename(path)
    return path


@pytest.fixture
def cases(tmp_path):
    """One with a label map, one with masks, one without labels."""
    random = np.random.default_rng(0)
    scans = [write(tmp_path / f"{n}.nii.gz", random.integers(-99, 99, (8, 9, 7)).astype(np.int16)) for n in range(3)]
    label = np.zeros((8, 9, 7), np.uint8)
    label[2:5, 2:6, 1:4], label[5:7, 2:6, 1:4] = 1, 2
    masks = {
        name: Mark(write(tmp_path / f"{name}.nii.gz", (label == v).astype(np.uint8))) for name, v in VALUES.items()
    }
    return [
        Case("map", "train", scans[0], write(tmp_path / "map.nii.gz", label), VALUES),
        Case("masks", "val", scans[1], masks=masks),
        Case("plain", "predict", scans[2]),
    ]


VALUES = {"liver": 1, "spleen": 2}


def subjects(measured):
    return [case.subject for case in measured.cases]


@pytest.fixture
def streams(monkeypatch):
    """How often the voxels of each file are read."""
    started, values = Counter(), Container.values

    def counted(container):
        started[container.file.name] += 1
        return values(container)

    monkeypatch.setattr(Container, "values", counted)
    return started


def test_one_reading_says_what_two_say(cases, streams):
    report, measured = check_and_measure(cases, progress=False)
    names = {"0.nii.gz", "1.nii.gz", "2.nii.gz", "map.nii.gz", "liver.nii.gz", "spleen.nii.gz"}
    assert streams == dict.fromkeys(names, 1)
    assert str(report) == str(check_cases(cases))
    assert measured is not None
    assert measured == fingerprint(cases, progress=False)


def test_each_plane_of_a_slab_is_read_once(tmp_path, streams):
    for number in range(1, 6):
        values = np.random.default_rng(number).integers(0, 999, (6, 8), dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    case = Case("slab", "train", tmp_path / "3.png", slab=Slab((1.0, 1.0, 5.0), planes=5, interval_mm=5.0))
    report, measured = check_and_measure([case], progress=False)
    assert streams == {f"{number}.png": 1 for number in range(1, 6)}
    assert not report.defects
    assert measured is not None
    assert measured.cases[0].shape == (8, 6, 5)


def test_a_scan_under_two_names_is_seen_by_its_voxels(cases):
    report, measured = check_and_measure([cases[0], replace(cases[0], subject="twin")], progress=False)
    assert "holds the same voxels" in str(report)
    assert report.bad_subjects == {"twin"}
    assert subjects(measured) == ["map"]


def test_all_that_is_wrong_with_a_case_is_said_though_its_reading_stops_at_the_first(cases, tmp_path):
    label, mask = cases[0].label, tmp_path / "liver.nii.gz"
    write(label, np.full((8, 9, 7), 9, np.uint8))
    mask.write_bytes(mask.read_bytes()[:-12])
    report, measured = check_and_measure(cases, progress=False)
    assert report.bad_subjects == {"map", "masks"}
    assert report.defects == check_cases(cases).defects
    assert subjects(measured) == ["plain"]


def test_what_only_the_reading_finds_is_a_defect_of_its_case(cases):
    report, measured = check_and_measure(
        [replace(cases[0], drawn_on=(DrawnOn(planes=(70,)),)), cases[1]], progress=False
    )
    assert "drawn_on has the planes [70], but the image has planes 0 to 6" in str(report)
    assert report.bad_subjects == {"map"}
    assert subjects(measured) == ["masks"]


def test_without_a_sound_scan_nothing_is_measured(cases):
    cases[2].channels["image"].write_bytes(b"")
    report, measured = check_and_measure(cases[2:], progress=False)
    assert len(report.defects) == 1
    assert measured is None
