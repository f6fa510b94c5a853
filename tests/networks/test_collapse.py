"""What takes the features of several slices to one plane."""

import pytest
import torch
from torch import nn

from lightning_atlas.networks import depth_collapse

FEATURES = torch.rand(2, 6, 4, 5, 9, generator=torch.Generator().manual_seed(1))
ALL = ["centre", "group", "mean", "full"]


@pytest.mark.parametrize("how", ALL)
def test_one_slice_is_left(how):
    with torch.no_grad():
        found = depth_collapse(how, 6, 9)(FEATURES)
    assert found.shape == (2, 6, 4, 5, 1)


def test_a_fresh_group_transform_is_the_centre_slice():
    group, centre = depth_collapse("group", 6, 9), depth_collapse("centre", 6, 9)
    torch.testing.assert_close(group(FEATURES), centre(FEATURES))
    torch.testing.assert_close(centre(FEATURES), FEATURES[..., 4:5])


def test_a_group_transform_with_equal_weights_is_the_mean():
    group = depth_collapse("group", 6, 9)
    nn.init.constant_(group.get_parameter("weight"), 1 / 9)
    torch.testing.assert_close(group(FEATURES), depth_collapse("mean", 6, 9)(FEATURES))


def test_a_group_transform_is_the_grouped_convolution_over_channels_and_slices_that_was_published():
    published = nn.Conv2d(6 * 9, 6, 1, groups=6, bias=False)
    group = depth_collapse("group", 6, 9)
    group.load_state_dict(published.state_dict(), strict=True)
    slices_first = FEATURES.permute(0, 1, 4, 3, 2)
    expected = published(slices_first.reshape(2, 6 * 9, 5, 4)).permute(0, 1, 3, 2)
    torch.testing.assert_close(group(FEATURES)[..., 0], expected)


def test_a_full_kernel_is_a_convolution_over_all_slices():
    published = nn.Conv3d(6, 6, (9, 1, 1), bias=False)
    full = depth_collapse("full", 6, 9)
    full.load_state_dict({"weight": published.weight.permute(0, 1, 4, 3, 2)}, strict=True)
    expected = published(FEATURES.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    torch.testing.assert_close(full(FEATURES), expected)


@pytest.mark.parametrize(("channels", "count", "full"), [((64, 128, 256, 512), 8_640, 3_133_440)])
def test_they_have_as_many_parameters_as_published_for_nine_slices(channels, count, full):
    def parameters(how):
        return sum(each.numel() for n in channels for each in depth_collapse(how, n, 9).parameters())

    with torch.device("meta"):
        assert (parameters("group"), parameters("full")) == (count, full)


@pytest.mark.parametrize(("how", "adapter"), [("group", "DepthWeights"), ("full", "KernelSize")])
def test_another_number_of_slices_is_refused_with_the_way_out(how, adapter):
    with pytest.raises(ValueError, match=rf"of 9 slices, and the features have 7: .* {adapter}"):
        depth_collapse(how, 6, 9)(FEATURES[..., :7])
