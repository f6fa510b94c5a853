"""Flat kernels in three planes, against the same convolutions done plane by plane with 2D ones."""

from typing import Any

import pytest
import torch
from flat_resnet import FlatResNet
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.adaptation.lora import LoRA
from lightning_atlas.intake import load_weights
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.networks import ACSResNet, DepthPolicy, PooledEncoder, ResUNet, as_network
from lightning_atlas.networks.acs import FLAT_ALONG, ACSConv3d, in_plane, thirds


def plane_by_plane(volume: Tensor, layer: ACSConv3d, view: int, stride: int) -> Tensor:
    """Return what a 2D convolution makes of every plane of a volume, in the planes that the stride leaves."""
    axis = FLAT_ALONG[view]
    planes = volume.unbind(2 + axis)[::stride]
    # What is left of (i, j, k) without the axis is (columns, rows).
    pictures = [each.transpose(2, 3) for each in planes]
    pad = layer.dilation[0] * (layer.kernel_size[0] // 2)
    options = (layer.bias, stride, pad, layer.dilation[0], layer.groups)
    found = [F.conv2d(each, layer.weight, *options).transpose(2, 3) for each in pictures]
    return torch.stack(found, 2 + axis)


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 1, 4), (1, 1, 8)])
@pytest.mark.parametrize("outputs", [8, 16])
def test_a_third_of_the_channels_sees_each_plane(outputs, stride, dilation, groups):
    layer = ACSConv3d(8, outputs, 3, stride, dilation, groups)
    volume = torch.randn(2, 8, 6, 7, 9)
    views = [plane_by_plane(volume, layer, view, stride) for view in range(3)]
    dealt = thirds(groups if groups > 1 else outputs)
    each = outputs // groups if groups > 1 else 1
    ends = [sum(dealt[: view + 1]) * each for view in range(3)]
    expected = torch.cat(
        [seen[:, end - count * each : end] for seen, end, count in zip(views, ends, dealt, strict=True)], 1
    )
    torch.testing.assert_close(layer(volume), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_mean_and_soft_are_means_of_the_three_views(stride):
    mean, soft = (ACSConv3d(4, 6, 5, stride, kernels=kernels) for kernels in ("mean", "soft"))
    soft.weight, soft.bias = mean.weight, mean.bias
    volume = torch.randn(1, 4, 7, 8, 9)
    views = torch.stack([plane_by_plane(volume, mean, view, stride) for view in range(3)])
    torch.testing.assert_close(mean(volume), views.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(soft(volume), mean(volume), rtol=1e-4, atol=1e-5)
    assert soft.views is not None
    soft.views.data = torch.randn(3, 6)
    shares = soft.views.softmax(0).view(3, 1, 6, 1, 1, 1)
    torch.testing.assert_close(soft(volume), (views * shares).sum(0), rtol=1e-4, atol=1e-5)
    assert sum(each.numel() for each in soft.parameters()) - sum(each.numel() for each in mean.parameters()) == 3 * 6


@pytest.mark.parametrize(("count", "dealt"), [(64, (22, 21, 21)), (65, (22, 22, 21)), (66, (22,) * 3), (2, (1, 1, 0))])
def test_the_first_views_get_what_does_not_divide_by_three(count, dealt):
    assert thirds(count) == dealt
    if count == 2:
        assert ACSConv3d(1, 2, 3)(torch.randn(1, 1, 4, 4, 4)).shape == (1, 2, 4, 4, 4)


def test_rows_lie_along_j_in_a_slice_and_along_k_across_slices():
    kernel = torch.arange(15.0).view(1, 1, 3, 5)
    assert in_plane(kernel).shape == (1, 1, 5, 3, 1)
    assert in_plane(kernel, 1).shape == (1, 1, 5, 1, 3)
    assert in_plane(kernel, 0).shape == (1, 1, 1, 5, 3)
    assert in_plane(kernel)[0, 0, 4, 2, 0] == in_plane(kernel, 0)[0, 0, 0, 4, 2] == kernel[0, 0, 2, 4]


@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
def test_padding_that_is_no_zero_reaches_each_view(mode):
    layer = ACSConv3d(2, 3, 3)
    layer.padding_mode = mode
    volume = torch.randn(1, 2, 5, 6, 7)
    padded = F.pad(volume, [1] * 6, mode=mode)
    inner = ACSConv3d(2, 3, 3)
    inner.weight, inner.bias = layer.weight, layer.bias
    torch.testing.assert_close(layer(volume), inner(padded)[..., 1:-1, 1:-1, 1:-1])


def test_outer_slices_repeated_along_k_leave_equal_slices_equal():
    network = ACSResNet(features=6, depth_policy=DepthPolicy(padding="replicate")).eval()
    volume = torch.randn(1, 1, 32, 32, 1).expand(-1, -1, -1, -1, 5).contiguous()
    found = network.levels(volume)[-1]
    torch.testing.assert_close(found, found[..., :1].expand_as(found), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [18, 50])
def test_names_and_shapes_are_those_of_a_2d_resnet(depth):
    ours, flat = ACSResNet(in_channels=3, depth=depth, features=8).state_dict(), FlatResNet(depth).state_dict()
    theirs = {name: each.shape for name, each in flat.items() if not name.startswith("fc.")}
    assert {name: each.shape[:4] if each.ndim == 5 else each.shape for name, each in ours.items()} == theirs


def test_the_policy_along_k_changes_without_touching_a_weight():
    encoder = ACSResNet(features=6)
    network = PooledEncoder(encoder).eval()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    volume = torch.randn(1, 1, 32, 32, 8)
    assert [each.shape[-1] for each in encoder.levels(volume)] == [8] * 5
    encoder.set_depth(DepthPolicy("stride"))
    assert [each.shape[-1] for each in encoder.levels(volume)] == [4, 2, 1, 1, 1]
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())


def test_every_weight_gets_a_gradient_and_low_rank_updates_fit():
    network = PooledEncoder(ACSResNet(features=6, kernels="soft"))
    LoRA(rank=2).build(network, {"head"})
    network(torch.randn(2, 1, 32, 32, 4)).square().sum().backward()
    moved = {name for name, each in network.named_parameters() if each.grad is not None and each.grad.abs().max() > 0}
    assert "backbone.layer3.0.conv1.views" in moved or "backbone.conv1.views" in moved
    assert any("parametrizations.weight.0.B" in name for name in moved)


@pytest.mark.parametrize(("ours", "notes"), [("acs", 0), ("mean", 1)])
def test_weights_that_were_used_in_other_planes_are_told_of(ours, notes):
    spec = {"class_path": "lightning_atlas.ACSResNet", "init_args": {"features": 6, "kernels": "acs"}}
    source = SourceWeights(ACSResNet(features=6).state_dict(), None, "acs.safetensors", "", spec)
    network = ResUNet(ACSResNet(features=6, kernels=ours))
    told = [each for each in load_weights(network, source, adapters=[]).notes if "with kernels: acs" in each]
    assert len(told) == notes


@pytest.mark.parametrize("kernels", ["acs", "soft"])
def test_a_head_of_its_kind_stays_so_with_another_number_of_outputs(kernels):
    layer = ACSConv3d(4, 2, 3, dilation=2, kernels=kernels)
    layer.depth_padding = "replicate"
    if layer.views is not None:
        nn.init.normal_(layer.views)
    network: Any = as_network(nn.Sequential(layer), [], [], ["0"])
    network.resize(5)
    new = network[0]
    assert (type(new), new.kernels, new.depth_padding, new.out_channels) == (ACSConv3d, kernels, "replicate", 5)
    assert new.weight.shape == (5, 4, 3, 3)
    assert new.weight.std().item() == pytest.approx((1 / 36 / 3) ** 0.5, rel=0.2)
    assert new.views is None or torch.equal(new.views, torch.zeros(3, 5))
    assert network.output_axes() == {"0.weight": 0, "0.bias": 0} | ({"0.views": 1} if kernels == "soft" else {})
    assert network(torch.randn(1, 4, 6, 6, 6)).shape == (1, 5, 6, 6, 6)


def test_a_kernel_without_a_middle_is_refused():
    with pytest.raises(ValueError, match="4 x 4 has no middle where planes could cross: take one of 3 or 5"):
        ACSConv3d(1, 1, 4)


def test_it_is_a_convolution_for_what_looks_for_one():
    assert isinstance(ACSConv3d(1, 1, 3), nn.Conv3d)
