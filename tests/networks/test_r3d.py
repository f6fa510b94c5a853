"""R3D has the published tensors, and computes what a residual network computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_atlas.networks import R3D, DepthPolicy, PooledEncoder
from lightning_atlas.networks.base import check_stages

STRIDE = DepthPolicy("stride")
PARTS = ("running_mean", "running_var", "weight", "bias")


def size(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def torchvision_names(blocks: tuple[int, ...], convolutions: int) -> set[str]:
    """Return the names in torchvision's ResNet state dicts, without the classifier."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv1.weight", *(f"bn1.{each}" for each in norm)]
    for layer, count in enumerate(blocks, 1):
        for block in range(count):
            at = f"layer{layer}.{block}"
            for number in range(1, convolutions + 1):
                names += [f"{at}.conv{number}.weight", *(f"{at}.bn{number}.{each}" for each in norm)]
            if block == 0 and (layer > 1 or convolutions == 3):
                names += [f"{at}.downsample.0.weight", *(f"{at}.downsample.1.{each}" for each in norm)]
    return set(names)


@pytest.mark.parametrize(
    ("depth", "blocks", "parameters", "keys", "kernels"),
    [
        (18, (2, 2, 2, 2), 33_160_000, 120, 20),
        (34, (3, 4, 6, 3), 63_469_632, 216, 36),
        (50, (3, 4, 6, 3), 46_155_072, 318, 53),
        (101, (3, 4, 23, 3), 85_201_216, 624, 104),
        (152, (3, 8, 36, 3), 117_359_936, 930, 155),
    ],
)
def test_parameters_and_names_are_the_published_ones(depth, blocks, parameters, keys, kernels):
    with torch.device("meta"):
        network = R3D(depth=depth)
        grouped = R3D(depth=depth, norm="group")
    assert size(network) == size(grouped) == parameters
    state = network.state_dict()
    assert len(state) == keys
    assert sum(each.ndim == 5 for each in state.values()) == kernels
    assert set(state) == torchvision_names(blocks, 2 if depth < 50 else 3)
    assert {key.replace("gn", "bn") for key in grouped.state_dict()} <= set(state)


def test_the_deep_stem_and_the_classifier_have_the_published_sizes():
    with torch.device("meta"):
        deep, classifier = R3D(stem="deep"), PooledEncoder(R3D(), 1000)
    assert size(deep) == 33_221_984
    assert [each for each in deep.state_dict() if each.endswith("conv.weight")] == [
        f"stem.{number}.conv.weight" for number in range(3)
    ]
    assert size(classifier) == 33_673_000


def test_kernels_of_other_shapes_fit_what_kinetics_networks_have():
    with torch.device("meta"):
        network = R3D(in_channels=3, stem=(7, 7, 3), strides=(2, 1, 1, 2, 2, 2))
    assert network.get_parameter("conv1.weight").shape == (64, 3, 7, 7, 3)
    # torchvision's r3d_18 has 33 371 472 parameters, 205 200 of them in its classifier of 400 classes.
    assert size(network) == 33_371_472 - 205_200
    with pytest.raises(ValueError, match=r"sides of stem are odd.*\[7, 7, 4\]"):
        R3D(stem=(7, 7, 4))


def naive(network: R3D, image: torch.Tensor, depth_stride: bool) -> list[torch.Tensor]:
    """Compute the levels from the tensors alone, by torchvision's definition of a basic block."""
    state = network.state_dict()

    def norm(features: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance, weight, bias = (state[f"{name}.{each}"] for each in PARTS)
        return F.batch_norm(features, mean, variance, weight, bias)

    def step(number: int) -> tuple[int, int, int]:
        return (number, number, number if depth_stride else 1)

    features = F.relu(norm(F.conv3d(image, state["conv1.weight"], None, step(2), 3), "bn1"))
    found = [features]
    features = F.max_pool3d(features, 3, step(2), 1)
    for layer in range(1, 5):
        for block in range(2):
            at, stride = f"layer{layer}.{block}", step(2 if layer > 1 and block == 0 else 1)
            inner = F.relu(norm(F.conv3d(features, state[f"{at}.conv1.weight"], None, stride, 1), f"{at}.bn1"))
            inner = norm(F.conv3d(inner, state[f"{at}.conv2.weight"], None, 1, 1), f"{at}.bn2")
            if (key := f"{at}.downsample.0.weight") in state:
                features = norm(F.conv3d(features, state[key], None, stride), f"{at}.downsample.1")
            features = F.relu(inner + features)
        found.append(features)
    return found


def stirred(network: R3D) -> R3D:
    """Give norms other numbers than those that make each block its shortcut."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                nn.init.uniform_(buffer, *((0.5, 1.5) if name == "running_var" else (-0.3, 0.3)))
    return network


@pytest.mark.parametrize("depth_stride", [False, True])
def test_features_are_those_of_the_definition(depth_stride):
    network = stirred(R3D(features=4, depth_policy=STRIDE if depth_stride else DepthPolicy())).double().eval()
    image = torch.randn(2, 1, 33, 20, 9, dtype=torch.float64)
    expected = naive(network, image, depth_stride)
    for ours, theirs in zip(network.levels(image), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.equal(network.encoded(image), network(image))
    assert [level.shape[1] for level in expected] == list(network.level_features)


def test_three_slices_of_a_picture_keep_their_number_and_a_224_picture_has_the_published_grids():
    levels = R3D(features=2).eval().levels(torch.rand(1, 1, 224, 224, 3))
    assert [tuple(level.shape[1:]) for level in levels[1:]] == [
        (2, 56, 56, 3),
        (4, 28, 28, 3),
        (8, 14, 14, 3),
        (16, 7, 7, 3),
    ]


@pytest.mark.parametrize(
    "network", [{"depth": 18}, {"depth": 50}, {"norm": "group"}, {"shortcut": "A"}, {"stem": "deep"}]
)
def test_every_block_starts_as_its_shortcut_and_every_parameter_learns(network):
    encoder = R3D(features=4, **network)
    check_stages(encoder)
    image = torch.randn(2, 1, 32, 32, 3)
    block = encoder.layers()[0][1]
    features = torch.rand(1, encoder.level_features[1], 4, 4, 3)
    with torch.no_grad():
        assert torch.equal(block.eval()(features), features)
    stirred(encoder).train()(image).square().sum().backward()
    taught = {name for name, each in encoder.named_parameters() if each.grad is not None and each.grad.abs().sum() > 0}
    assert taught == set(dict(encoder.named_parameters()))


@pytest.mark.parametrize("depth", [18, 50])
def test_shortcuts_without_parameters_pick_voxels_pad_channels_and_carry_gradients(depth):
    network = R3D(depth=depth, features=4, shortcut="A", depth_policy=STRIDE)
    assert not [name for name in network.state_dict() if "downsample" in name]
    image = torch.randn(2, 1, 64, 64, 64, requires_grad=True)
    before, after = network.eval().levels(image)[1:3]  # blocks are shortcuts while their last norm is zero
    assert torch.equal(after[:, : before.shape[1]], before[..., ::2, ::2, ::2])
    assert after[:, before.shape[1] :].abs().sum() == 0
    after.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_one_voxel_is_too_little_for_batch_norm_and_enough_for_group_norm():
    image = torch.randn(1, 1, 32, 32, 32)
    with pytest.raises(ValueError, match="single voxel that R3D leaves of one image of 32 x 32 x 32 voxels"):
        R3D(features=4, depth_policy=STRIDE).train()(image)
    assert R3D(features=8, depth_policy=STRIDE, norm="group").train()(image).shape == (1, 64, 1, 1, 1)
    assert R3D(features=4, depth_policy=STRIDE).eval()(image).shape == (1, 32, 1, 1, 1)


def test_an_encoder_names_the_networks_that_give_it_a_head():
    with pytest.raises(ValueError, match=r"no head for 3 outputs.*PooledEncoder.*ResUNet.*RetinaDetector"):
        R3D(features=4).resize(3)
