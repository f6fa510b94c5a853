from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torchio as tio

from lightning_atlas.data import Case, DrawnOn, EmbeddedScan, SimulatedCohort
from lightning_atlas.data.embedded import FILES, HERE
from lightning_atlas.data.store.reading import read_case

UNKNOWN = 999


def write(path, array, affine=None):
    nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)
    return path


@pytest.mark.parametrize("scan", FILES)
@pytest.mark.parametrize("planes", [(3,), (0, 7, 11)])
def test_only_the_drawn_planes_are_left_counted_upwards(scan, planes):
    """Nibabel's own reorientation is the referee."""
    whole = EmbeddedScan(scan).case
    sparse = Case(scan, "train", whole.image, whole.label, whole.values, drawn_on=(DrawnOn(planes=planes),))
    upright = [as_ras(map_of(read_case(each)[1])) for each in (whole, sparse)]
    assert np.array_equal(upright[0][:, :, list(planes)], upright[1][:, :, list(planes)])
    assert np.flatnonzero((upright[1] != UNKNOWN).any(axis=(0, 1))).tolist() == list(planes)


def as_ras(label):
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(label.numpy()[0], label.affine)).dataobj)


@pytest.mark.parametrize("scan", FILES)
def test_embedded_scans_have_a_name_for_every_value_and_lie_on_one_grid(scan):
    subject = read_case(EmbeddedScan(scan).case)[0]
    names = EmbeddedScan(scan).case.names
    assert sorted(subject.get_image("label").data.unique().tolist()) == list(range(1, 2 + len(names)))
    assert scan in HERE.joinpath("NOTICE").read_text(encoding="utf-8")


def test_left_is_left():
    """The left kidney's centre lies on the patient's left, whichever way the file is stored."""
    for scan in ("abdomen_ct", "abdomen_mr"):
        loaded = EmbeddedScan(scan).case
        label = read_case(loaded)[0].get_image("label")
        centres = {}
        for side in ("left", "right"):
            row = 2 + loaded.names.index(f"kidney_{side}")
            centres[side] = (label.affine @ [*np.argwhere(label.numpy()[0] == row).mean(axis=0), 1])[0]
        assert centres["left"] < centres["right"]


def test_channels_come_in_their_order(tmp_path):
    first, second = (write(tmp_path / f"{n}.nii.gz", np.full((3, 4, 5), n, np.int16)) for n in (1, 2))
    subject, drawing = read_case(Case("one", "predict", {"T2": second, "T1": first}))
    assert subject.get_image("image").data[:, 0, 0, 0].tolist() == [2, 1]
    assert drawing.names == ()
    assert not drawing.rows.any()


def test_channels_on_two_grids_are_refused(tmp_path):
    first = write(tmp_path / "1.nii.gz", np.zeros((3, 4, 5), np.int16))
    second = write(tmp_path / "2.nii.gz", np.zeros((3, 4, 6), np.int16))
    with pytest.raises(ValueError, match=r"channels lie on different grids.*2\.nii\.gz"):
        read_case(Case("one", "predict", {"T1": first, "T2": second}))


def test_planes_are_drawn_on_the_simulated_subject():
    whole = SimulatedCohort("spine_mr", 1, 0, 0).cases()[0]
    drawing = read_case(replace(whole, drawn_on=(DrawnOn(planes=(20, 31)),)))[1]
    dense = read_case(whole)[1]
    upright = as_ras(map_of(drawing)), as_ras(map_of(dense))
    observed = upright[0] != UNKNOWN
    assert np.flatnonzero(observed.any(axis=(0, 1))).tolist() == [20, 31]
    assert np.array_equal(drawing.names, dense.names)


def map_of(drawing):
    """Which name each voxel has: 0 for none of them."""
    found = np.where((drawing.states == 1).any(axis=1), 1 + (drawing.states == 1).argmax(axis=1), 0)
    found[(drawing.states == -1).all(axis=1)] = UNKNOWN
    return tio.LabelMap(tensor=found.astype(np.int16)[drawing.rows][None], affine=drawing.affine)


def test_names_that_were_not_looked_for_are_no_others(tmp_path):
    """What lies under a name that nobody looked for is unknown, but is none of the others."""
    image = write(tmp_path / "scan.nii.gz", np.zeros((4, 1, 1), np.int16))
    label = write(tmp_path / "label.nii.gz", np.arange(4, dtype=np.uint8).reshape(4, 1, 1))
    case = Case("one", "train", image, label, {"a": 1, "b": 2, "c": 3}, drawn=("a", "c"))
    drawing = read_case(case)[1]
    states, drawn = drawing.states[drawing.rows[:, 0, 0]], drawing.drawn[drawing.rows[:, 0, 0]]
    assert states.tolist() == [[0, -1, 0], [1, 0, 0], [0, -1, 0], [0, 0, 1]]
    assert drawn.tolist() == [[True, False, True]] * 4
