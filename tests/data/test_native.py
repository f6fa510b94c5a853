import nibabel as nib
import numpy as np
import pytest
import torch
from torchio.transforms import Resample, ToCanonical

from lightning_atlas.data import ScanDataModule, ScanFolder
from lightning_atlas.data.native import ceilings, file_reference


@pytest.fixture
def speck(tmp_path):
    """A block of 8 x 8 x 8 mm and a single voxel of another structure, which a grid of 4 mm loses."""
    values = np.zeros((16, 16, 16), np.uint8)
    values[0, 0, 0] = 1
    values[4:12, 4:12, 4:12] = 2
    for folder, content in (("images", values.astype(np.int16)), ("labels", values)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(content, np.diag([-1.0, 1.0, 1.0, 1.0])), tmp_path / folder / "a.nii.gz")
    source = ScanFolder(
        tmp_path / "images", tmp_path / "labels", {"speck": 1, "block": 2}, test_share=1.0, val_share=0.0
    )
    data = ScanDataModule(source, {"block": ["block"], "speck": ["speck"]}, [ToCanonical(), Resample(4)])
    data.prepare_data()
    data.setup("test")
    return data, values


def test_a_reference_is_what_the_file_says_though_the_network_sees_less(speck):
    data, values = speck
    reference = data.reference("a")
    block, lost = ((reference.states[:, column] == 1)[reference.rows.long()].numpy() for column in (0, 1))
    assert (block == (values == 2)).all()
    assert (lost == (values == 1)).all()
    assert reference.drawn[reference.rows.long()].all()
    assert reference.voxel_ml == pytest.approx(0.001)


def test_the_ceiling_is_the_dice_of_what_came_back(speck):
    data, values = speck
    found = data.ceiling("test")
    assert found["speck"] == 0.0  # its row is not among those of the prepared case
    case = data.whole("test", 0)
    back = data.restore(case["label"][0].long(), "a").data[0]
    table = (case["states"][0, :, 0] == 1)[back.long()].numpy()
    expected = 2 * (table & (values == 2)).sum() / (table.sum() + (values == 2).sum())
    assert found["block"] == pytest.approx(expected)


def test_a_class_that_no_case_has_is_no_number(speck):
    data, _ = speck
    (case,) = data.cases
    (opened,) = data.opened["test"]
    assert np.isnan(list(ceilings([], ["block"]).values())).all()
    assert file_reference(case, opened).rows.shape == torch.Size((16, 16, 16))
