import numpy as np
import pytest
import torch
import torchio as tio
from torchio.transforms import RescaleIntensity

from lightning_atlas.contract import LEVELS
from lightning_atlas.data.air import RescaleAboveAir, above_air, levels_above_air
from lightning_atlas.data.embedded import HERE


def body_in_air(share, floor=0.0, noise=2.0):
    """Return a cube of tissue (100 to 300) that is a share of a cube of air, and where the tissue is."""
    random = np.random.default_rng(0)
    side = round(20 / share ** (1 / 3))
    inside = np.zeros((side, side, side), dtype=bool)
    inside[:20, :20, :20] = True
    values = np.zeros(inside.shape)
    values[inside] = random.uniform(100, 300, 20**3)
    values[~inside] = np.abs(random.normal(0, noise, (~inside).sum()))
    return (values + floor).astype(np.float32), inside


@pytest.mark.parametrize("floor", [0.0, -1000.0])
@pytest.mark.parametrize("share", [0.8, 0.3, 0.05])
def test_air_is_told_from_tissue_whatever_its_share_and_where_intensities_start(share, floor):
    image, inside = body_in_air(share, floor)
    image[-1, -1, -1] = floor - 500  # a voxel that resampling made
    assert np.array_equal(above_air(image), inside)


@pytest.mark.parametrize("value", [0.0, -1000.0, 7.0])
def test_a_volume_of_one_value_has_no_air(value):
    assert above_air(np.full((3, 3, 3), value, np.float32)).all()


def test_a_ct_is_told_from_the_air_around_it_by_the_same_rule():
    image = tio.ScalarImage(HERE / "abdomen_ct.nii.gz").data[0].float().numpy()
    assert ((image > -880) == above_air(image)).mean() > 0.99


def rescaled(transform, image):
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.from_numpy(np.atleast_3d(image))))
    return transform(subject)["image"].data.numpy()


def test_percentiles_are_those_of_tissue_and_do_not_depend_on_the_field_of_view():
    little, inside = body_in_air(0.8)
    much, elsewhere = body_in_air(0.1)
    ours = [rescaled(RescaleAboveAir(), each[None])[0] for each in (little, much)]
    low, high = np.percentile(little[inside], (0.5, 99.5))
    assert ours[0][inside] == pytest.approx(np.clip((little[inside] - low) / (high - low), 0, 1), abs=1e-5)
    assert np.abs(ours[0][inside] - ours[1][elsewhere]).max() < 0.01
    assert (ours[1][~elsewhere] == 0).all()
    plain = [rescaled(RescaleIntensity((0, 1), percentiles=(0.5, 99.5)), each[None])[0] for each in (little, much)]
    assert np.abs(plain[0][inside] - plain[1][elsewhere]).max() > 0.02


def test_each_channel_is_rescaled_on_its_own_to_the_range():
    image, _ = body_in_air(0.3)
    both = rescaled(RescaleAboveAir((-1.0, 1.0), (1.0, 99.0)), np.stack([image, image * 50 + 3]))
    assert both[0] == pytest.approx(both[1], abs=1e-4)
    assert (both.min(), both.max()) == pytest.approx((-1, 1))


def test_levels_are_percentiles_of_tissue_for_each_channel():
    image, inside = body_in_air(0.3)
    (first, second) = levels_above_air(np.stack([image, image + 10]))
    assert first == pytest.approx(np.percentile(image[inside], LEVELS), rel=1e-3)
    assert np.subtract(second, first) == pytest.approx(10, abs=1e-2)
