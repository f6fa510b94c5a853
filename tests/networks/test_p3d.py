"""P3D and MP3D: as published to the tensor, and what they do along k."""

import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightning_atlas.intake.key_rules import turned_axes
from lightning_atlas.networks import P3D, PooledEncoder
from lightning_atlas.networks.base import check_stages
from lightning_atlas.networks.depth import PRESERVE, DepthPolicy, set_depth

JOURNAL = DepthPolicy(pools={1: "halve", 2: "halve", 3: "merge"})
PUBLISHED = {
    "18ba": (15_257_536, 108),
    "34ba": (28_346_816, 204),
    18: (16_032_704, 111),
    63: (27_281_728, 207),
    131: (49_624_896, 411),
    199: (68_028_736, 615),
}
"""Parameters and names of the released code, on one channel."""


def small(depth: Any = "18ba", **more):
    torch.manual_seed(3)
    network = P3D(depth=depth, features=8, **more)
    for each in network.parameters():
        torch.nn.init.normal_(each, std=0.3)
    return network.eval()


@pytest.mark.parametrize("depth", PUBLISHED)
def test_parameters_and_names_are_as_many_as_published(depth):
    with torch.device("meta"):
        network = P3D(depth=depth)
    assert (sum(each.numel() for each in network.parameters()), len(network.state_dict())) == PUBLISHED[depth]


@pytest.mark.parametrize(("depth", "whole", "pooled"), [("18ba", 110, 57), (63, 207, 97)])
def test_nine_slices_of_512_x_512_cost_as_many_multiply_adds_as_the_released_code(depth, whole, pooled):
    with torch.device("meta"):
        networks = P3D(depth=depth), P3D(depth=depth, depth_policy=JOURNAL, pool_depth=1)
        image = torch.empty(1, 1, 512, 512, 9)
    for network, expected in zip(networks, (whole, pooled), strict=True):
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            network(image)
        assert round(counted.get_total_flops() / 2e9) == expected


def test_names_and_shapes_are_those_of_the_released_code():
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in P3D(depth=63).state_dict().items()}
    turned = {name: shape[:2] + shape[:1:-1] if len(shape) == 5 else shape for name, shape in shapes.items()}
    assert turned["conv1_custom.weight"] == (64, 1, 1, 7, 7)
    assert turned["norm1.weight"] == (64,)
    assert turned["layer2.0.conv1.weight"] == (128, 256, 1, 1, 1)
    assert turned["layer2.0.conv2.weight"] == (128, 128, 1, 3, 3)
    assert turned["layer2.0.conv3.weight"] == (128, 128, 3, 1, 1)
    assert turned["layer2.0.conv4.weight"] == (512, 128, 1, 1, 1)
    assert turned["layer4.2.norm_4.bias"] == (2048,)
    assert turned["layer1.0.downsample.0.weight"] == (256, 64, 1, 1, 1)
    assert "layer1.1.downsample.0.weight" not in turned


class Released:
    """What the released code computes, in its axes (slices first), from its tensors."""

    def __init__(self, state, basic, pooled):
        self.state, self.basic, self.pooled = state, basic, pooled

    def norm(self, x, name):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.group_norm(x, min(32, len(weight)), weight, bias)

    def layer(self, x, at, number, stride=(1, 1, 1)):
        weight = self.state[f"{at}.conv{number}.weight"]
        padding = [side // 2 for side in weight.shape[2:]]
        return F.relu(self.norm(F.conv3d(x, weight, stride=stride, padding=padding), f"{at}.norm_{number}"))

    def pair(self, x, at, first, kind, stride=(1, 1, 1)):
        seen = self.layer(x, at, first, stride)
        if kind == "A":
            return self.layer(seen, at, first + 1)
        beside = (x, stride) if kind == "B" else (seen, (1, 1, 1))
        return seen + self.layer(beside[0], at, first + 1, beside[1])

    def block(self, x, at, kind, stride):
        if self.basic:
            inner = self.pair(self.pair(x, at, 1, kind, stride), at, 3, kind)
        else:
            inner = self.pair(self.layer(x, at, 1, stride), at, 2, kind)
            inner = self.norm(F.conv3d(inner, self.state[f"{at}.conv4.weight"]), f"{at}.norm_4")
        shortcut = self.state.get(f"{at}.downsample.0.weight")
        if shortcut is not None:
            x = self.norm(F.conv3d(x, shortcut, stride=stride), f"{at}.downsample.1")
        return F.relu(inner + x)

    def levels(self, image, blocks):
        first = F.conv3d(image, self.state["conv1_custom.weight"], stride=(1, 2, 2), padding=(0, 3, 3))
        size, padding = ((1, 3, 3), (0, 1, 1)) if self.pooled else (3, 1)
        x, outputs, kinds = F.relu(self.norm(first, "norm1")), [], itertools.cycle("ABC")
        x = F.max_pool3d(x, size, (1, 2, 2), padding)
        pools = {1: ((2, 1, 1), (1, 0, 0)), 2: ((2, 1, 1), (1, 0, 0)), 3: (1, 0)} if self.pooled else {}
        for level, count in enumerate(blocks, 1):
            for place in range(count):
                stride = (1, 2, 2) if level > 1 and place == 0 else (1, 1, 1)
                x = self.block(x, f"layer{level}.{place}", next(kinds), stride)
            x = F.max_pool3d(x, (3, 1, 1), *pools[level]) if level in pools else x
            outputs.append(x)
        return outputs


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("depth", "blocks"), [("18ba", (2, 2, 2, 2)), (18, (2, 2, 2, 2)), ("34ba", (3, 4, 6, 3))])
def test_the_levels_are_what_the_released_code_computes(depth, blocks, pooled):
    network = small(depth, depth_policy=JOURNAL if pooled else PRESERVE, pool_depth=1 if pooled else 3)
    state = {name: turned_axes(each, "kji") for name, each in network.state_dict().items()}
    image = torch.rand(1, 1, 24, 20, 9)
    code = Released(state, str(depth).endswith("ba"), pooled)
    expected = code.levels(image.permute(0, 1, 4, 3, 2), blocks)
    with torch.no_grad():
        found = network.levels(image)[1:]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.permute(0, 1, 4, 3, 2), rtol=1e-3, atol=1e-4)


POLICIES = {
    "preserve": DepthPolicy(),
    "stride": DepthPolicy("stride"),
    "strides": DepthPolicy((1, 2, 1, 1, 2, 1)),
    "journal": JOURNAL,
    "halved": DepthPolicy(pools={2: "halve"}),
}


@pytest.mark.parametrize("slices", [9, 12, 17])
@pytest.mark.parametrize("policy", POLICIES)
def test_levels_have_the_grids_that_are_told(policy, slices):
    network = small(18, depth_policy=POLICIES[policy])
    with torch.no_grad():
        found = network.levels(torch.rand(1, 1, 32, 64, slices))
    assert [each.shape[1] for each in found] == list(network.level_features)
    assert [each.shape[-1] for each in found] == network.level_depths(slices)
    for each, (i, j, _) in zip(found, network.reductions(), strict=True):
        assert (each.shape[2], each.shape[3]) == (32 // i, 64 // j)


def test_a_voxel_of_a_level_stands_for_as_many_slices_as_told():
    journal, strided = (small(depth_policy=each).reductions() for each in (JOURNAL, POLICIES["stride"]))
    assert [k for *_, k in journal] == [1, 2, 4, 4, 4]
    assert [k for *_, k in strided] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("slices", [1, 3, 5, 7, 8])
def test_too_few_slices_to_pool_are_refused_with_the_number_that_will_do(slices):
    network = small(depth_policy=JOURNAL, pool_depth=1)
    with pytest.raises(ValueError, match=rf"P3D has no slice left .* image of {slices} slices along k.* 9 or more"):
        network(torch.rand(1, 1, 32, 32, slices))
    assert network(torch.rand(1, 1, 32, 32, 9)).shape[-1] == network(torch.rand(1, 1, 32, 32, 11)).shape[-1] == 1
    network.set_depth(PRESERVE)
    assert network(torch.rand(1, 1, 32, 32, slices)).shape[-1] == slices


def test_one_voxel_is_too_little_for_batch_norm():
    with pytest.raises(ValueError, match="single voxel that P3D leaves of one image of 32 x 32 x 1 voxels"):
        small(norm="batch").train()(torch.rand(1, 1, 32, 32, 1))


def test_another_policy_touches_no_tensor_and_each_takes_the_weights_of_the_other():
    network, journal = small(), small(depth_policy=JOURNAL, pool_depth=1)
    before = {name: each.clone() for name, each in network.state_dict().items()}
    set_depth(PooledEncoder(network), JOURNAL)
    assert network.depth_policy == JOURNAL
    after = network.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    journal.load_state_dict(before, strict=True)


def test_a_volume_that_is_constant_along_k_is_seen_alike_in_every_slice_if_slices_are_repeated_beyond_it():
    network = small(18, norm="batch", depth_policy=DepthPolicy(padding="replicate"))
    image = torch.rand(1, 1, 32, 32, 1)
    with torch.no_grad():
        thin, thick = network(image.expand(-1, -1, -1, -1, 3)), network(image.expand(-1, -1, -1, -1, 9))
        torch.testing.assert_close(thin, thin[..., :1].expand_as(thin), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(thick[..., :3], thin, rtol=1e-4, atol=1e-3)
        network.set_depth(PRESERVE)
        zeros = network(image.expand(-1, -1, -1, -1, 3))
    assert not torch.allclose(zeros, thin, rtol=0.01)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("depth", ["18ba", 18])
def test_stages_hold_each_tensor_once_and_every_parameter_learns(depth, norm):
    network = P3D(depth=depth, features=8, norm=norm)
    check_stages(network)
    network(torch.rand(2, 1, 32, 32, 3)).square().sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in network.parameters())


def test_without_a_first_pool_and_with_a_stride_in_the_first_layer():
    network = small("18ba", strides=(1, 1, 2, 2, 1, 2))
    with torch.no_grad():
        found = network.levels(torch.rand(1, 1, 16, 16, 3))
    assert [each.shape[2] for each in found] == [16, 8, 4, 4, 2]


def test_it_is_an_encoder_and_says_so():
    with pytest.raises(ValueError, match=r"P3D is an encoder .* PooledEncoder"):
        small().resize(4)
    assert PooledEncoder(small(), 3)(torch.rand(1, 1, 32, 32, 3)).shape == (1, 3)
