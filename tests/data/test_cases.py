from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from lightning_atlas.data import Case, EmbeddedScan
from lightning_atlas.data.embedded import FILES, HERE


def write(path, array, affine=None):
    nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def case(tmp_path, label, **changes):
    image = write(tmp_path / "scan.nii.gz", np.zeros(label.shape, np.int16))
    drawing = write(tmp_path / "label.nii.gz", label)
    return replace(Case("one", "train", image, drawing, {"tail": 9, "head": 4}), **changes)


def test_rows_follow_the_order_of_values(tmp_path):
    label = np.array([0, 4, 9, 7], np.uint8).reshape(4, 1, 1)
    loaded = case(tmp_path, label, ignore_value=7)
    assert loaded.names == ("head", "tail")
    assert loaded.load().get_image("label").data.flatten().tolist() == [1, 2, 3, 0]


def test_a_value_without_a_name_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"label\.nii\.gz has the values \[7\]"):
        case(tmp_path, np.array([0, 4, 9, 7], np.uint8).reshape(4, 1, 1)).load()


def test_image_and_label_on_two_grids_are_refused(tmp_path):
    label = np.zeros((4, 4, 4), np.uint8)
    moved = case(tmp_path, label)
    write(moved.label, label, np.diag([1, 1, 2, 1]))
    with pytest.raises(ValueError, match="different grids"):
        moved.load()


@pytest.mark.parametrize("values", [{"head": 0}, {"head": 1, "tail": 1}])
def test_names_that_share_a_value_or_are_the_background_are_refused(values, tmp_path):
    with pytest.raises(ValueError, match="a value of its own above 0"):
        Case("one", "train", tmp_path, tmp_path, values)


@pytest.mark.parametrize("subject", ["", "../up", ".hidden", "a/b", "a\\b"])
def test_names_that_cannot_be_files_are_refused(subject, tmp_path):
    with pytest.raises(ValueError, match="cannot be a subject's name"):
        Case(subject, "train", tmp_path)


@pytest.mark.parametrize("scan", FILES)
@pytest.mark.parametrize("planes", [(3,), (0, 7, 11)])
def test_only_the_drawn_planes_are_left_counted_upwards(scan, planes):
    """Nibabel's own reorientation is the referee."""
    whole = EmbeddedScan(scan).case
    sparse = Case(scan, "train", whole.image, whole.label, whole.values, drawn_planes=planes)
    upright = [as_ras(each.load().get_image("label")) for each in (whole, sparse)]
    assert np.array_equal(upright[0][:, :, list(planes)], upright[1][:, :, list(planes)])
    assert np.flatnonzero(upright[1].any(axis=(0, 1))).tolist() == list(planes)


def as_ras(label):
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(label.numpy()[0], label.affine)).dataobj)


@pytest.mark.parametrize("scan", FILES)
def test_embedded_scans_have_a_name_for_every_value_and_lie_on_one_grid(scan):
    subject = EmbeddedScan(scan).case.load()
    names = EmbeddedScan(scan).case.names
    assert sorted(subject.get_image("label").data.unique().tolist()) == list(range(1, 2 + len(names)))
    assert scan in HERE.joinpath("NOTICE").read_text(encoding="utf-8")


def test_left_is_left():
    """The left kidney's centre lies on the patient's left, whichever way the file is stored."""
    for scan in ("abdomen_ct", "abdomen_mr"):
        loaded = EmbeddedScan(scan).case
        label = loaded.load().get_image("label")
        centres = {}
        for side in ("left", "right"):
            row = 2 + loaded.names.index(f"kidney_{side}")
            centres[side] = (label.affine @ [*np.argwhere(label.numpy()[0] == row).mean(axis=0), 1])[0]
        assert centres["left"] < centres["right"]


def test_table_of_a_fully_drawn_case():
    states, drawn = Case("one", "train", HERE, HERE, {"a": 1, "b": 2}).table()
    assert states.tolist() == [[-1, -1], [0, 0], [1, 0], [0, 1]]
    assert drawn.tolist() == [[False, False], [True, True], [True, True], [True, True]]


def test_table_where_only_some_names_were_drawn():
    """What lies under a name that nobody looked for is unknown, but is none of the others."""
    states, drawn = Case("one", "train", HERE, HERE, {"a": 1, "b": 2, "c": 3}, drawn=("a", "c")).table()
    assert states.tolist() == [[-1, -1, -1], [0, -1, 0], [1, 0, 0], [0, -1, 0], [0, 0, 1]]
    assert drawn.tolist() == [[False] * 3] + [[True, False, True]] * 4


def test_a_scan_without_labels_has_only_unknown_rows(tmp_path):
    image = write(tmp_path / "scan.nii.gz", np.zeros((3, 3, 3), np.int16))
    bare = Case("one", "predict", image)
    assert not bare.load().get_image("label").data.any()
    assert bare.table()[0].shape[1] == 0
