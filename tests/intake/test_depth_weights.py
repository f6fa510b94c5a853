"""Weights of a group transform for another number of slices."""

import pytest
import torch
from torch import nn

from lightning_atlas.intake import DepthWeights, KernelSize, SourceWeights, load_weights
from lightning_atlas.intake.adapters import Pair
from lightning_atlas.intake.depth_weights import weights_for
from lightning_atlas.networks import P3D, SliceDetector, depth_collapse
from lightning_atlas.networks.base import Network, Stage


class Stack(Network):
    """A convolution and a group transform."""

    def __init__(self, depth):
        super().__init__()
        self.first = nn.Conv3d(1, 4, 1)
        self.collapse = nn.ModuleList([depth_collapse("group", 4, depth)])

    def stages(self):
        return [Stage("encoder", "encoder", ("first",)), Stage("decoder", "decoder", ("collapse",))]

    def forward(self, image):
        return self.collapse[0](self.first(image))


def trained(depth):
    torch.manual_seed(depth)
    network = Stack(depth)
    nn.init.normal_(network.get_parameter("collapse.0.weight"))
    return network


def moved(old, new, how):
    network, source = Stack(new), trained(old)
    weights = SourceWeights(dict(source.state_dict()), None, "some.pth", "0" * 64)
    report = load_weights(network, weights, required_share=1.0, adapters=[DepthWeights(how)])
    assert report.fresh == report.left_over == []
    return source, network, report


def test_more_slices_change_nothing_where_the_old_ones_are_in_the_middle():
    source, network, report = moved(3, 9, "centre")
    image = torch.rand(1, 1, 4, 5, 9)
    torch.testing.assert_close(network(image), source(image[..., 3:6]))
    assert "weights of 3 -> 9 slices: its centre, zeros around it" in str(report)


def test_of_more_slices_the_middle_is_taken():
    source, network, _ = moved(9, 3, "centre")
    old, new = (each.get_parameter("collapse.0.weight") for each in (source, network))
    assert torch.equal(new, old[:, 3:6])


@pytest.mark.parametrize(("old", "new"), [(3, 9), (9, 3), (9, 5), (4, 9), (1, 7), (7, 1)])
def test_an_image_that_is_constant_along_k_is_answered_as_before_by_interpolated_weights(old, new):
    source, network, _ = moved(old, new, "linear")
    image = torch.rand(1, 1, 4, 5, 1)
    found, expected = (each(image.expand(-1, -1, -1, -1, depth)) for each, depth in ((network, new), (source, old)))
    torch.testing.assert_close(found, expected)


def test_interpolated_weights_keep_their_centre_of_mass_and_their_sign():
    weights = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.2, 0.6, 0.2]])
    found = weights_for(weights, 9, "linear")
    assert found.min() >= 0
    torch.testing.assert_close(found, found.flip(1))
    torch.testing.assert_close(found[1], torch.full((9,), 1 / 3))
    assert found[0].argmax() == 4


def test_a_detector_of_three_slices_becomes_one_of_nine_without_a_lost_weight():
    def built(slices, how):
        return SliceDetector(P3D(depth="18ba", features=8), 2, slices=slices, collapse=how, features=8)

    rules = {"group": DepthWeights(), "full": KernelSize("centre")}
    for how, rule in rules.items():
        source = SourceWeights(dict(built(3, how).state_dict()), None, "some.pth", "0" * 64)
        report = load_weights(built(9, how), source, required_share=1.0, adapters=[rule])
        assert report.fresh == report.left_over == []
        assert len(report.reshaped) == 4


def test_even_and_odd_have_no_common_centre():
    with pytest.raises(ValueError, match=r"collapse\.0\.weight: 9 slices have no centre among 4: .* how: linear"):
        moved(9, 4, "centre")


def test_other_tensors_are_left_alone():
    kernel, target = torch.rand(4, 3, 1, 1), torch.rand(4, 5, 1, 1)
    assert DepthWeights().take(Pair("neck.lateral_convs.0.conv.weight", kernel, target, None)) is None
    assert DepthWeights().take(Pair("collapse.0.weight", kernel, kernel, None)) is None
    assert DepthWeights().take(Pair("collapse.0.weight", torch.rand(4, 3), torch.rand(4, 5), None)) is None
