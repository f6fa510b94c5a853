"""The decoders over a residual encoder have the published tensors and compute what is published."""

import pytest
import torch
from torch.nn import functional as F

from lightning_atlas.networks import R3D, DepthPolicy, LidcFCN, PooledEncoder, ResUNet
from lightning_atlas.networks.base import check_stages
from lightning_atlas.networks.depth import set_depth

STRIDE = DepthPolicy("stride")
PARTS = ("running_mean", "running_var", "weight", "bias")
ORGANS, NODULES = (1, 2, 1, 2, 2, 2), (1, 1, 1, 2, 1, 2)


def organs(**options) -> ResUNet:
    return ResUNet(R3D(features=4, strides=ORGANS, depth_policy=STRIDE), 3, **options)


def nodules() -> LidcFCN:
    return LidcFCN(R3D(features=4, strides=NODULES, depth_policy=STRIDE), 2, head_features=16)


def size(module: torch.nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def test_parameters_are_as_many_as_published():
    with torch.device("meta"):
        network, head = ResUNet(R3D(), 14), LidcFCN(R3D(), 2).decode_head
    assert size(network.neck) == 7_478_272
    assert size(network.decode_head) == 34_862
    # 1x1x1 from 128 + 512 and from 64 + 512 channels to 512, 3x3x3 to 128, 1x1x1 to 2, and the norms.
    assert size(head) == (640 + 576) * 512 + 2 * 1024 + 27 * 512 * 128 + 2 * 128 + 128 * 2 + 2


def test_the_grids_are_the_published_ones():
    def sides(network: ResUNet | LidcFCN, *shape: int) -> list[tuple[int, ...]]:
        return [tuple(level.shape[1:]) for level in network.eval().backbone.levels(torch.rand(1, 1, *shape))]

    lidc = LidcFCN(R3D(features=2, strides=NODULES, depth_policy=STRIDE))
    assert sides(lidc, 48, 48, 48) == [(2, *[48] * 3)] * 2 + [(4, *[24] * 3), (8, *[24] * 3), (16, *[12] * 3)]
    bcv = ResUNet(R3D(features=2, strides=ORGANS, depth_policy=STRIDE))
    assert sides(bcv, 64, 48, 32) == [
        (features, 64 // step, 48 // step, 32 // step)
        for features, step in zip((2, 2, 4, 8, 16), (1, 2, 4, 8, 16), strict=True)
    ]
    assert bcv.size_multiple == (16, 16, 16)
    assert lidc.size_multiple == (4, 4, 4)


def conv_norm(state: dict[str, torch.Tensor], name: str, features: torch.Tensor) -> torch.Tensor:
    kernel = state[f"{name}.conv.weight"]
    return normed(state, f"{name}.bn", F.conv3d(features, kernel, padding=kernel.shape[2] // 2))


def normed(state: dict[str, torch.Tensor], name: str, features: torch.Tensor) -> torch.Tensor:
    mean, variance, weight, bias = (state[f"{name}.{each}"] for each in PARTS)
    return F.relu(F.batch_norm(features, mean, variance, weight, bias))


def test_the_unet_computes_the_published_decoder():
    """Interpolate by two, take the skip's channels, join skip first, convolve twice; the finest level comes last."""
    network = organs(dropout=0.0).double().eval()
    image = torch.randn(1, 1, 32, 16, 16, dtype=torch.float64)
    state = network.state_dict()
    *skips, features = network.backbone.levels(image)
    for number in (3, 2, 1, 0):
        up, convs = f"neck.decoder.{number}.upsample.interp_upsample.1", f"neck.decoder.{number}.conv_block.convs"
        features = F.interpolate(features, scale_factor=2, mode="trilinear", align_corners=False)
        features = torch.cat([skips[number], conv_norm(state, up, features)], 1)
        features = conv_norm(state, f"{convs}.1", conv_norm(state, f"{convs}.0", features))
    for number in (0, 1):
        features = conv_norm(state, f"decode_head.convs.{number}", features)
    expected = F.conv3d(features, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])
    assert torch.allclose(network(image), expected, atol=1e-12)


def test_the_nodule_head_computes_the_published_one():
    network = nodules().double().eval()
    image = torch.randn(1, 1, 16, 16, 16, dtype=torch.float64)
    state = network.state_dict()
    stem, _, second, _, last = network.backbone.levels(image)
    features = conv_norm(state, "decode_head.conv1", torch.cat([second, F.interpolate(last, scale_factor=2)], 1))
    features = conv_norm(state, "decode_head.conv2", torch.cat([stem, F.interpolate(features, scale_factor=2)], 1))
    features = F.conv3d(features, state["decode_head.seg_head.0.weight"], padding=1)
    last_layer = (state["decode_head.seg_head.3.weight"], state["decode_head.seg_head.3.bias"])
    expected = F.conv3d(normed(state, "decode_head.seg_head.1", features), *last_layer)
    assert torch.allclose(network(image), expected, atol=1e-12)


@pytest.mark.parametrize("build", [organs, nodules])
def test_stages_hold_every_tensor_and_every_parameter_learns(build):
    network = build()
    check_stages(network)
    network(torch.randn(2, 1, 32, 16, 16)).square().sum().backward()
    assert [name for name, each in network.named_parameters() if each.grad is None] == []
    network.resize(5)
    assert network(torch.randn(2, 1, 32, 16, 16)).shape == (2, 5, 32, 16, 16)


@pytest.mark.parametrize("policy", [DepthPolicy(), STRIDE, DepthPolicy(pools={1: "halve"})])
def test_logits_lie_on_the_images_grid_whatever_the_strides_and_sides_follow_the_policy(policy):
    network = ResUNet(R3D(features=4, depth_policy=policy), 3).eval()
    i, j, k = network.size_multiple
    assert (i, j) == (32, 32)
    assert network(torch.randn(1, 1, i, 2 * j, 2 * k)).shape == (1, 3, i, 2 * j, 2 * k)
    if k > 1:
        with pytest.raises(ValueError, match=rf"ResUNet takes images whose sides are multiples of \(32, 32, {k}\)"):
            network(torch.randn(1, 1, i, j, k + 1))
    set_depth(network, DepthPolicy())
    assert network(torch.randn(1, 1, i, j, 3)).shape == (1, 3, i, j, 3)


def test_weights_of_a_classifier_of_pictures_fill_the_encoder_of_a_segmentation():
    pictures, scans = PooledEncoder(R3D(features=4), 10), organs()
    encoder = {name: each for name, each in pictures.state_dict().items() if name.startswith("backbone.")}
    assert set(encoder) == {name for name in scans.state_dict() if name.startswith("backbone.")}
    missing, unexpected = scans.load_state_dict(encoder, strict=False)
    assert unexpected == []
    assert not [name for name in missing if name.startswith("backbone.")]


def test_the_nodule_head_refuses_a_pyramid_of_other_levels(monkeypatch):
    backbone = R3D(features=4)
    monkeypatch.setattr(backbone, "level_features", (4, 8, 16, 32))
    with pytest.raises(ValueError, match="fifth of five levels, and R3D has 4"):
        LidcFCN(backbone)
