import numpy as np
import pytest
import torch
import torchio as tio

from lightning_atlas.data.slice_spacing import ResampleSlices


def subject(slices=9, spacing=2.5):
    """A ramp along k, which linear interpolation reproduces, and a label of its upper half."""
    affine = np.diag([0.7, 0.8, spacing, 1.0])
    affine[:3, 3] = 5, 6, 7
    ramp = (spacing * torch.arange(slices, dtype=torch.float32)).expand(1, 4, 5, slices).clone()
    return tio.Subject(
        image=tio.ScalarImage(tensor=ramp, affine=affine),
        label=tio.LabelMap(tensor=(ramp > 10).to(torch.uint8), affine=affine),
    )


@pytest.mark.parametrize(("spacing_mm", "slices"), [(1.0, 21), (5.0, 5), (2.5, 9), (7.0, 3)])
def test_slices_lie_at_the_new_distance_and_planes_stay(spacing_mm, slices):
    given = subject()
    found = ResampleSlices(spacing_mm)(given)
    assert found.spatial_shape == (4, 5, slices)
    np.testing.assert_allclose(found.spacing, (0.7, 0.8, spacing_mm))
    assert found.get_image("image").origin == given.get_image("image").origin
    np.testing.assert_allclose(found.get_image("image").numpy()[0, 1, 2], spacing_mm * np.arange(slices), atol=1e-4)
    assert set(found.get_image("label").data.unique().tolist()) <= {0, 1}


def test_a_distance_of_nothing_is_refused():
    with pytest.raises(ValueError, match="more than 0 mm apart, found spacing_mm: 0"):
        ResampleSlices(0.0)
