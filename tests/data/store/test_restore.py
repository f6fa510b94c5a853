import nibabel as nib
import numpy as np
import pytest
import torch
import torchio as tio
from torchio.transforms import Crop, Resample, ToCanonical, ToOrientation

from lightning_atlas.data import EmbeddedScan, Patches, ScanDataModule
from lightning_atlas.data.embedded import FILES
from lightning_atlas.data.store.reading import read_case

FINE = {"abdomen_ct": 3, "abdomen_mr": 3, "chest_ct": (3, 3, 5), "spine_ct": 1.5, "spine_mr": 1.5}
ODD = {
    "abdomen_ct": 2.7,
    "abdomen_mr": (2.1, 2.9, 1.7),
    "chest_ct": (2, 3, 7),
    "spine_ct": 1.1,
    "spine_mr": (1, 0.8, 1.5),
}


def module(scan, spacing_mm, orientation="RAS", classes=None):
    transforms = [ToOrientation(orientation), Resample(spacing_mm)]
    data = ScanDataModule(EmbeddedScan(scan), classes, transforms, patches=Patches((16, 16, 16)))
    data.prepare_data()
    data.setup()
    return data


def classes_of(rows):
    """Class numbers of a fully drawn case: row 2 is class 1."""
    return (rows.long() - 1).clamp(min=0)


@pytest.mark.parametrize("grid", [FINE, ODD], ids=["same", "odd"])
@pytest.mark.parametrize("scan", FILES)
def test_the_reference_returns_to_the_voxel_where_the_grid_is_not_coarser(scan, grid, tmp_path):
    data = module(scan, grid[scan])
    original = read_case(data.cases[0])[0].get_image("label")
    nearest = original
    for transform in data.preprocess:  # TorchIO's own nearest voxel
        nearest = transform(nearest)
    restored = data.restore(nearest.data[0], scan)
    assert torch.equal(restored.data, original.data)
    assert np.array_equal(restored.affine, original.affine)
    assert min(data.ceiling("test").values()) > 0.7


@pytest.mark.parametrize("scan", ["spine_mr", "chest_ct"])
def test_a_written_prediction_has_the_files_shape_affine_and_orientation(scan, tmp_path):
    data = module(scan, FINE[scan], orientation="LPI")
    data.restore(classes_of(data.whole("test", 0)["label"][0]), scan).save(tmp_path / "prediction.nii.gz")
    written = nib.Nifti1Image.from_filename(tmp_path / "prediction.nii.gz")
    file = tio.LabelMap(data.cases[0].label)
    assert written.shape == file.spatial_shape
    assert np.abs(written.affine - file.affine).max() < 1e-4
    assert nib.aff2axcodes(written.affine) == nib.aff2axcodes(file.affine)


def test_a_coarser_grid_loses_and_the_ceiling_says_how_much():
    """Compared with a Dice by hand, on a class of thin structures and on a thick one."""
    data = module("spine_mr", 4.0, classes={"cord": ["spinal_cord"], "endplate": ["endplate"]})
    names = EmbeddedScan("spine_mr").case.names
    restored = data.restore(data.whole("test", 0)["label"][0], "spine_mr").data
    original = read_case(data.cases[0])[0].get_image("label").data
    ceiling = data.ceiling("test")
    for name, own in (("cord", "spinal_cord"), ("endplate", "endplate")):
        row = 2 + names.index(own)
        ours, theirs = original == row, restored == row
        assert ceiling[name] == pytest.approx(2 * float((ours & theirs).sum()) / float(ours.sum() + theirs.sum()))
    assert 0.3 < ceiling["endplate"] < ceiling["cord"] < 0.95


def test_what_was_cropped_away_becomes_background():
    transforms = [ToCanonical(), Crop((10, 10, 0, 0, 0, 0))]
    data = ScanDataModule(EmbeddedScan("spine_mr"), None, transforms)
    data.setup()
    shape = data.whole("test", 0)["label"].shape[1:]
    restored = ToCanonical()(data.restore(torch.ones(shape, dtype=torch.long), "spine_mr")).data[0]
    assert not restored[:9].any()
    assert restored[10:-10].all()


@pytest.mark.parametrize(("most", "dtype"), [(3, torch.uint8), (300, torch.int16), (40000, torch.int32)])
def test_rows_keep_their_numbers_whatever_their_number(most, dtype):
    data = module("spine_mr", 3.0)
    rows = torch.zeros(data.whole("test", 0)["label"].shape[1:], dtype=torch.int32)
    rows[::2] = most
    restored = data.restore(rows, "spine_mr").data
    assert restored.dtype == dtype
    assert set(restored.unique().tolist()) == {0, most}


def test_a_prediction_of_another_shape_is_refused():
    data = module("spine_mr", 3.0)
    with pytest.raises(ValueError, match="prediction has shape"):
        data.restore(torch.zeros(4, 4, 4, dtype=torch.long), "spine_mr")
    with pytest.raises(ValueError, match="no subject 'nobody' is open; open are spine_mr"):
        data.restore(torch.zeros(4, 4, 4, dtype=torch.long), "nobody")
