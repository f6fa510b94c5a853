"""What a residual network does along k: number of slices, padding, and a policy that changes without weights."""

import pytest
import torch
from jaxtyping import config
from jsonargparse import ArgumentParser
from torch.nn import functional as F

from lightning_atlas.networks import R3D, DepthPolicy, Network, PooledEncoder, UNet
from lightning_atlas.networks.depth import Conv3d, depth_aware, set_depth

POOLED = DepthPolicy(pools={1: "halve", 2: "halve", 3: "merge"})
POLICIES = {
    "preserve": DepthPolicy(),
    "stride": DepthPolicy("stride"),
    "six strides": DepthPolicy((1, 2, 1, 2, 1, 2)),
    "pools": POOLED,
    "replicate": DepthPolicy(padding="replicate"),
    "all": DepthPolicy((2, 1, 1, 1, 2, 1), {2: "halve"}, "replicate"),
}
each_policy = pytest.mark.parametrize("name", POLICIES)


@pytest.mark.parametrize(
    ("taps", "slices", "stride"), [(7, 1, 1), (7, 2, 1), (7, 3, 1), (7, 3, 2), (3, 1, 1), (3, 2, 2)]
)
def test_taps_that_meet_zeros_alone_are_left_out_without_a_difference(taps, slices, stride):
    ours = Conv3d(2, 3, (3, 3, taps), (2, 1, stride), (1, 1, taps // 2)).double()
    image = torch.randn(2, 2, 6, 5, slices, dtype=torch.float64)
    theirs = F.conv3d(image, ours.weight, ours.bias, ours.stride, (1, 1, taps // 2))
    found = ours(image)
    assert torch.allclose(found, theirs, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(theirs.square().sum(), ours.weight)[0]
    assert torch.allclose(torch.autograd.grad(found.square().sum(), ours.weight)[0], expected, rtol=1e-10)


def test_the_outer_taps_of_the_first_kernel_learn_nothing_from_three_slices():
    for policy, taught in ((DepthPolicy(), [1, 2, 3, 4, 5]), (DepthPolicy(padding="replicate"), list(range(7)))):
        network = R3D(features=4, depth_policy=policy)
        loss = network(torch.randn(2, 1, 32, 32, 3)).square().sum()
        (gradient,) = torch.autograd.grad(loss, network.get_parameter("conv1.weight"))
        assert gradient.abs().sum((0, 1, 2, 3)).nonzero().flatten().tolist() == taught


@pytest.mark.parametrize("stride", [1, 2])
def test_replicate_padding_repeats_the_first_and_last_slice_and_nothing_in_the_plane(stride):
    layer = Conv3d(1, 2, (3, 3, 7), stride, (1, 1, 3), bias=False)
    layer.depth_padding = "replicate"
    image = torch.randn(1, 1, 4, 6, 5)
    index = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4, 4, 4, 4])
    expected = F.conv3d(image[..., index], layer.weight, stride=stride, padding=(1, 1, 0))
    assert torch.allclose(layer(image), expected, atol=1e-6)


def test_with_replicate_padding_every_slice_of_a_constant_volume_says_the_same():
    network = R3D(features=4).eval()
    volume = torch.randn(1, 1, 32, 32, 1).expand(-1, -1, -1, -1, 5)
    with torch.no_grad():
        bordered = network(volume)
        network.set_depth(DepthPolicy(padding="replicate"))
        even = network(volume)
    assert torch.allclose(even, even[..., :1].expand_as(even), atol=1e-5)
    assert not torch.allclose(bordered, bordered[..., :1].expand_as(bordered), atol=1e-2)


@each_policy
@pytest.mark.parametrize("slices", [9, 12, 17])
def test_slices_and_reductions_are_those_of_the_features(name, slices):
    network = R3D(features=4, depth_policy=POLICIES[name]).eval()
    with torch.no_grad():
        levels = network.levels(torch.randn(1, 1, 64, 32, slices))
    assert [level.shape[-1] for level in levels] == network.level_depths(slices)
    sides = [(level.shape[2], level.shape[3]) for level in levels]
    assert [(64 // i, 32 // j) for i, j, _ in network.reductions()] == sides
    if "merge" not in network.depth_policy.pools.values():
        assert [-(-slices // k) for *_, k in network.reductions()] == [level.shape[-1] for level in levels]


def test_published_depths_of_the_detector_and_of_a_crop():
    assert R3D(features=4, depth_policy=POOLED).level_depths(9)[1:] == [9, 5, 3, 1]
    assert R3D(features=4, depth_policy=DepthPolicy("stride")).level_depths(48) == [24, 12, 6, 3, 2]
    assert R3D(features=4).level_depths(3) == [3] * 5


@each_policy
def test_a_policy_changes_no_tensor_and_can_be_taken_back(name):
    network = R3D(features=4).eval()
    image, before = torch.randn(1, 1, 32, 32, 9), {key: each.clone() for key, each in network.state_dict().items()}
    with torch.no_grad():
        first = network(image)
        set_depth(network, POLICIES[name])
        other = network(image)
        fresh = R3D(features=4, depth_policy=POLICIES[name]).eval()
        fresh.load_state_dict(before, strict=True)
        assert torch.equal(fresh(image), other)
        set_depth(network, DepthPolicy())
        assert torch.equal(network(image), first)
    assert all(torch.equal(before[key], each) for key, each in network.state_dict().items())


def test_interior_slices_move_with_the_image_while_every_slice_is_kept():
    network = R3D(features=4).eval()
    volume = torch.zeros(1, 1, 32, 32, 96)
    volume[..., 44:50] = torch.randn(1, 1, 32, 32, 6)
    with torch.no_grad():
        found, moved = network(volume), network(volume.roll(3, -1))
    assert torch.allclose(found.roll(3, -1)[..., 24:-24], moved[..., 24:-24], atol=1e-5)
    assert not torch.allclose(found[..., 24:-24], moved[..., 24:-24], atol=1e-3)


@pytest.mark.parametrize("slices", [3, 5, 7, 8])
def test_too_few_slices_for_a_pool_are_refused_with_the_number_that_is_needed(slices):
    network = R3D(features=4, depth_policy=POOLED)
    with pytest.raises(ValueError, match=f"layer 4 of an image of {slices} slices.*needs 9 or more") as caught:
        network(torch.zeros(2, 1, 32, 32, slices))
    assert len(str(caught.value).splitlines()) <= 5
    network(torch.zeros(2, 1, 32, 32, 9))


@pytest.mark.parametrize("policy", [DepthPolicy(), DepthPolicy("stride")])
def test_one_slice_is_enough_without_pools(policy):
    assert R3D(features=4, depth_policy=policy).eval()(torch.zeros(1, 1, 32, 32, 1)).shape[-1] == 1


def test_a_policy_reaches_a_network_that_another_holds():
    network = PooledEncoder(R3D(features=4), 2)
    set_depth(network, DepthPolicy("stride", padding="replicate"))
    (encoder,) = depth_aware(network)
    assert encoder.reductions()[-1] == (32, 32, 32)
    assert {each.depth_padding for each in network.modules() if isinstance(each, Conv3d)} == {"replicate"}
    with pytest.raises(ValueError, match="UNet has no policy along k"):
        set_depth(UNet(), DepthPolicy())


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: DepthPolicy((1, 2, 2)), r"depth_policy.strides has six numbers.*found \[1, 2, 2\]"),
        (lambda: DepthPolicy((1, 2, 2, 0, 1, 1)), r"six numbers from 1 up.*\[1, 2, 2, 0, 1, 1\]"),
        (lambda: DepthPolicy(pools={4: "halve"}), "behind which k is pooled, 1, 2 or 3; found 4"),
        (lambda: R3D(strides=(2, 2, 2)), "strides has six numbers"),
        (lambda: R3D(strides=(2, 1, 1, 2, 2, 2), depth_policy=DepthPolicy((1, 2, 1, 1, 1, 1))), "has 2 for first pool"),
    ],
)
def test_what_is_no_policy_is_refused(build, told):
    with pytest.raises(ValueError, match=told):
        build()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"strides": "strided"}, "strides is preserve or stride, or six numbers; found 'strided'"),
        ({"pools": {1: "max"}}, "pools has halve or merge for a layer; found 'max'"),
        ({"padding": "reflect"}, "padding is zeros or replicate; found 'reflect'"),
    ],
)
def test_words_that_are_none_are_refused_in_python_too(settings, told, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # types are checked in the suite alone
    with pytest.raises(ValueError, match=f"depth_policy.{told}"):
        DepthPolicy(**settings)


def test_a_recipe_sets_the_policy_or_one_part_of_it():
    parser = ArgumentParser()
    parser.add_argument("--network", type=Network)
    policy = {"strides": [1, 2, 1, 2, 2, 2], "pools": {1: "halve"}}
    options = {"features": 4, "depth_policy": policy}
    config = parser.parse_object({"network": {"class_path": "lightning_atlas.R3D", "init_args": options}})
    assert parser.instantiate(config).network.depth_policy == DepthPolicy((1, 2, 1, 2, 2, 2), {1: "halve"})
    command = ["--network=lightning_atlas.R3D", "--network.features=4", "--network.depth_policy.padding=replicate"]
    network = parser.instantiate(parser.parse_args(command)).network
    assert network.depth_policy == DepthPolicy(padding="replicate")
    assert network.get_submodule("layer4.1.conv2").depth_padding == "replicate"
