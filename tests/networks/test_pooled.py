from typing import Any

import pytest
import torch
from torch import nn

from lightning_atlas.networks import (
    R3D,
    DepthPolicy,
    Encoding,
    GenesisUNet,
    MedNeXt,
    Network,
    NnUNet,
    PooledEncoder,
    ResNetUNet,
    ResUNet,
    SegResNet,
    STUNet,
    SwinUNETR,
    UNet,
    UniversalNetwork,
    as_network,
    set_depth,
)
from lightning_atlas.networks.base import check_stages, stage_tensors

NETWORKS: dict[str, Any] = {
    "unet": lambda: UNet(features=(4, 8)),
    "segresnet": lambda: SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,)),
    "swin_unetr": lambda: SwinUNETR(feature_size=12),
    "swin_unetr_v2": lambda: SwinUNETR(feature_size=12, use_v2=True),
    "genesis": lambda: GenesisUNet(init_filters=2),
    "nnunet": lambda: NnUNet(features=(4, 8), kernel_sizes=(3, 3), strides=(1, 2), depths=(1, 1, 1)),
    "resenc": lambda: NnUNet(features=(4, 8), kernel_sizes=(3, 3), strides=(1, 2), depths=(1, 1, 1), residual=True),
    "stu_net": lambda: STUNet(features=(4, 8), depths=(1, 1), strides=(1, 2), deep_supervision=True),
    "mednext": lambda: MedNeXt(features=4, depths=(1,) * 9),
    "resnet": lambda: ResNetUNet(depth=10, init_filters=4, decoder_features=(8, 8, 8, 8, 8)),
    "r3d": lambda: R3D(features=4, norm="group", depth_policy=DepthPolicy("stride")),
    "res_unet": lambda: ResUNet(R3D(features=4, depth_policy=DepthPolicy("stride"))),
    "universal": lambda: UniversalNetwork(GenesisUNet(init_filters=8), out_channels=3, text_features=8),
}
SIDES = {
    "r3d": (64, 32, 32),
    "res_unet": (64, 32, 32),
    "swin_unetr": (64, 32, 32),
    "swin_unetr_v2": (64, 32, 32),
    "resnet": (64, 32, 32),
    "mednext": (32, 32, 32),
}


def image_for(name: str, cases: int = 1) -> torch.Tensor:
    return torch.randn(cases, 1, *SIDES.get(name, (16, 16, 16)))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_end_of_the_encoder_is_what_the_decoder_starts_from(name):
    """The last module of the encoder that the whole network runs gave these very features."""
    network, image = NETWORKS[name]().eval(), image_for(name)
    assert isinstance(network, Encoding)
    last = [stage for stage in network.stages() if stage.part == "encoder"][-1].modules[-1]
    seen = []
    network.get_submodule(last).register_forward_hook(lambda _, __, found: seen.append(found))
    with torch.no_grad():
        network(image)
        coarse = network.encoded(image)
    assert torch.equal(coarse, seen[0])
    assert coarse.shape[1] == network.coarse_features
    assert max(coarse.shape[2:]) < max(image.shape[2:])


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_that_is_left_of_a_network_is_used(name):
    """A tensor without a gradient would stop a run on several devices."""
    network, image = PooledEncoder(NETWORKS[name](), out_channels=3), image_for(name)
    check_stages(network)
    logits = network(image)
    assert logits.shape == (1, 3)
    logits.square().sum().backward()
    assert [each for each, value in network.named_parameters() if value.grad is None] == []
    assert [stage.part for stage in network.stages()][-2:] == ["encoder", "head"]
    assert not [stage for stage in network.stages() if not stage_tensors(network, stage)]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_tensor_of_the_decoder_is_left(name):
    whole, network = NETWORKS[name](), PooledEncoder(NETWORKS[name]())
    encoder = {each for s in whole.stages() if s.part == "encoder" for each in stage_tensors(whole, s)}
    beside = {each for each in encoder if each.startswith(tuple(f"{skip}." for skip in whole.skip_modules))}
    held = {each.removeprefix("backbone.") for each, _ in network.named_parameters() if not each.startswith("head.")}
    buffers = {each.removeprefix("backbone.") for each, _ in network.named_buffers()}
    assert held | buffers == encoder - beside


@pytest.mark.parametrize(("pooling", "width"), [("mean", 8), ("max", 8), ("both", 16)])
def test_pooling_does_not_depend_on_where_a_feature_lies(pooling, width):
    network = PooledEncoder(UNet(features=(4, 8)), pooling=pooling)
    maps = torch.randn(2, 8, 3, 4, 5)
    moved = maps.flip(2).transpose(3, 4)
    assert network.pooled(maps).shape == (2, width)
    assert torch.allclose(network.pooled(maps), network.pooled(moved), atol=1e-6)
    expected = {"mean": maps.mean((2, 3, 4)), "max": maps.amax((2, 3, 4))}
    assert torch.allclose(network.pooled(maps)[:, :8], expected["max" if pooling == "max" else "mean"], atol=1e-6)


def test_outputs_are_resized_and_sizes_and_conventions_are_the_networks_own():
    network: Network = PooledEncoder(GenesisUNet(init_filters=2, batch_statistics=True), out_channels=1)
    network.resize(5)
    assert network.output_axes() == {"head.weight": 0, "head.bias": 0}
    assert network.state_dict()["head.weight"].shape == (5, 32)
    assert network.conventions() == {"batch_statistics": "true"}
    with pytest.raises(ValueError, match="multiples of 8"):
        network(torch.zeros(1, 1, 12, 16, 16))


def test_the_sizes_that_are_taken_follow_the_policy_along_k():
    network = PooledEncoder(ResUNet(R3D(features=4)))
    assert network.size_multiple == (32, 32, 1)
    set_depth(network, DepthPolicy("stride"))
    assert network.size_multiple == (32, 32, 32)
    with pytest.raises(ValueError, match=r"32 x 32 x 16 voxels; .* 32 x 32 x 32 voxels"):
        network(torch.zeros(1, 1, 32, 32, 16))


def test_a_network_without_an_encoder_of_its_own_is_refused_by_name():
    adopted = as_network(nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(2, 2, 1)), ["0"], [], ["1"])
    with pytest.raises(ValueError, match="AdoptedSequential does not give the features of its encoder"):
        PooledEncoder(adopted)
