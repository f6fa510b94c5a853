from collections import OrderedDict
from typing import Literal

import pytest
import torch
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork

from lightning_atlas.networks.detection.fpn import FeaturePyramid


@pytest.mark.parametrize("axes", [2, 3])
def test_with_the_same_weights_it_is_the_pyramid_of_monai(axes: Literal[2, 3]):
    ours, theirs = FeaturePyramid([3, 5, 7], 4, axes), FeaturePyramidNetwork(axes, [3, 5, 7], 4)
    names = {"inner_blocks": "lateral_convs", "layer_blocks": "fpn_convs"}
    state = theirs.state_dict()
    ours.load_state_dict(
        {
            f"{names[part]}.{level}.conv.{last}": value
            for name, value in state.items()
            for part, level, last in [name.split(".")]
        }
    )
    levels = [torch.randn(2, width, *(side,) * axes) for width, side in ((3, 9), (5, 5), (7, 3))]
    expected = theirs(OrderedDict(enumerate(levels)))
    for found, wanted in zip(ours(levels), expected.values(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_further_levels_are_every_second_voxel():
    pyramid = FeaturePyramid([3], 4, 2, further=2)
    found = pyramid([torch.randn(1, 3, 7, 8)])
    assert torch.equal(found[1], torch.nn.functional.max_pool2d(found[0], 1, stride=2))  # as mmdetection has it
    assert [tuple(each.shape[2:]) for each in found] == [(7, 8), (4, 4), (2, 2)]
