"""2D networks made 3D: with kernels in each slice, a slice of a volume is answered as the picture was."""

import copy
import pickle
from typing import Any

import pytest
import torch
from flat_resnet import as_volume, drawn_flat
from jsonargparse import ArgumentParser
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor, nn

from lightning_atlas.networks import Network, as_volumetric
from lightning_atlas.networks.acs import ACSConv3d
from lightning_atlas.networks.base import check_stages
from lightning_atlas.networks.volumetric import made_volumetric

YAML = """
network:
  class_path: lightning_atlas.networks.as_volumetric
  init_args:
    network:
      class_path: monai.networks.nets.BasicUNet
      init_args: {spatial_dims: 2, in_channels: 1, out_channels: 2, features: [4, 4, 8, 8, 8, 4]}
    encoder: [conv_0, down_1, down_2, down_3, down_4]
    decoder: [upcat_4, upcat_3, upcat_2, upcat_1]
    head: [final_conv]
    kernels: soft
    size_multiple: 16
"""


def unet() -> BasicUNet:
    return BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4)).eval()


class SelectAdaptivePool2d(nn.Module):
    """A module that holds its layer, as timm's of this name does."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveMaxPool2d(4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.pool(maps)


def flat_parts() -> nn.Sequential:
    """One of each layer that has a counterpart; the grid is halved twice, and doubled twice."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding="same"),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, (3, 5), padding=(1, 2), groups=4, padding_mode="replicate"),
        nn.GroupNorm(2, 8),
        nn.AvgPool2d(2),
        nn.InstanceNorm2d(8, affine=True),
        nn.Dropout2d(0.5),
        nn.ConvTranspose2d(8, 4, (3, 4), stride=2, padding=1, output_padding=(1, 0), groups=2),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(4, 3, 1),
        nn.Softmax2d(),
        SelectAdaptivePool2d(),
    ).eval()


def randomised(network: nn.Module) -> nn.Module:
    for name, each in network.state_dict().items():
        if each.is_floating_point():
            each.copy_(torch.rand(each.shape) + 0.5 if name.endswith("var") else torch.randn(each.shape))
    return network.eval()


def same(volume: Tensor, flat: Tensor) -> None:
    expected = flat.transpose(2, 3).unsqueeze(-1)
    torch.testing.assert_close(volume, expected.expand_as(volume), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("preserve", [True, False])
@pytest.mark.parametrize("build", [flat_parts, unet])
def test_with_kernels_in_each_slice_equal_slices_are_answered_as_the_picture_was(build, preserve):
    network = randomised(build())
    picture = torch.randn(2, 1 if build is unet else 2, 32, 48)
    with torch.no_grad():
        flat = network(picture)
        volume = made_volumetric(network, "slice", preserve)(as_volume(picture, 16))
    assert volume.shape[-1] == (4 if build is flat_parts else 16)
    same(volume, flat)


def test_with_slices_kept_different_slices_of_a_network_without_pools_do_not_meet():
    flat = randomised(nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    pictures = torch.randn(5, 1, 12, 14)
    with torch.no_grad():
        expected = flat(pictures)
        volume = pictures.transpose(2, 3).movedim(0, -1).unsqueeze(0)
        found = made_volumetric(flat, "slice", preserve_depth=True)(volume)
    torch.testing.assert_close(found[0].movedim(-1, 0).transpose(2, 3), expected)


def halving(**settings: Any) -> Network:
    inside = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 1)
    )
    return as_volumetric(inside, ["0"], [], ["3"], **settings)


@pytest.mark.parametrize(
    ("settings", "multiple", "slices"),
    [
        ({"preserve_depth": True, "size_multiple": 2}, (2, 2, 1), 3),
        ({"preserve_depth": True, "size_multiple": [4, 2, 3]}, (4, 2, 3), 3),
        ({"size_multiple": 2}, 2, 4),
    ],
)
def test_sides_are_multiples_along_the_axes_that_are_halved(settings, multiple, slices):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(as_volumetric, "network", skip={"network", "encoder", "decoder", "head"})
    network = halving(**parser.parse_object({"network": settings}).network.as_dict())
    assert network.size_multiple == multiple
    assert network(torch.randn(1, 1, 16, 16, slices)).shape == (1, 2, 16, 16, slices)
    with pytest.raises(ValueError, match="takes images whose sides are multiples of"):
        network(torch.randn(1, 1, 16, 15, slices))


def test_too_few_slices_for_a_pool_are_told():
    with pytest.raises(ValueError, match=r"a pool over 2 slices is given 1: .* preserve_depth: true"):
        halving()(torch.randn(1, 1, 16, 16, 1))
    assert halving(preserve_depth=True)(torch.randn(1, 1, 16, 16, 1)).shape == (1, 2, 16, 16, 1)
    rounded_up = made_volumetric(nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)))
    assert rounded_up(torch.randn(1, 1, 16, 16, 1)).shape == (1, 1, 8, 8, 1)


def test_how_its_kernels_were_made_is_a_convention_of_its_weights():
    assert halving(kernels="mean").conventions() == {"kernels": "mean"}
    assert pickle.loads(pickle.dumps(halving())).conventions() == {"kernels": "acs"}


@pytest.mark.parametrize("kernels", ["acs", "soft", "mean"])
def test_a_2d_resnet_keeps_its_names_and_numbers_in_three_planes(kernels):
    flat = drawn_flat(1)
    before = copy.deepcopy(flat.state_dict())
    stages = ["conv1", "bn1", *(f"layer{n}" for n in range(1, 5))]
    network = as_volumetric(flat, stages, [], ["fc"], kernels)
    check_stages(network)
    after = {name: each for name, each in network.state_dict().items() if not name.endswith("views")}
    assert after.keys() == before.keys()
    for name, each in after.items():
        assert torch.equal(each.squeeze(4) if each.ndim == 5 else each, before[name])
    assert isinstance(network.get_submodule("layer2.0.conv2"), ACSConv3d)
    network.resize(2)
    with torch.no_grad():
        assert network(torch.randn(1, 3, 32, 32, 8)).shape == (1, 2)


def test_a_recipe_builds_one_and_it_survives_a_pickle():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Network)
    network = parser.instantiate(parser.parse_string(YAML)).network.eval()
    image = torch.rand(1, 1, 32, 16, 16)
    with torch.no_grad():
        found = network(image)
        assert found.shape == (1, 2, 32, 16, 16)
        assert torch.equal(pickle.loads(pickle.dumps(network))(image), found)
    assert {stage.part for stage in network.stages()} == {"encoder", "decoder", "head"}


class OwnNorm2d(nn.BatchNorm2d):
    """A norm with a rectifier behind it, as timm has them."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class MeanPool2d(nn.Module):
    """A layer that names its axes."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (OwnNorm2d(4), "OwnNorm2d has no counterpart in a volume here: put one of torch's own layers, or one that"),
        (MeanPool2d(), "MeanPool2d has no counterpart"),
        (nn.PixelShuffle(2), "PixelShuffle has no counterpart"),
        (nn.PixelUnshuffle(2), "PixelUnshuffle has no counterpart"),
        (nn.Unfold(2), "Unfold has no counterpart"),
        (nn.Unflatten(1, (1, 2, 2)), "Unflatten has no counterpart"),
        (nn.LayerNorm([4, 8, 8]), "LayerNorm has no counterpart"),
        (nn.LPPool2d(2, 2), "LPPool2d has no counterpart"),
        (nn.ReflectionPad2d(1), r"ReflectionPad2d has no counterpart"),
        (nn.Conv2d(4, 4, 3), "3 x 3 that is padded by 0 gives another shape in each plane: set its padding to 1"),
        (nn.Conv2d(4, 4, (3, 5), padding=(1, 2)), "3 x 5 is no square, .* take kernels: slice"),
        (nn.Conv2d(4, 4, 4, padding=2), "no middle"),
        (nn.Upsample(size=(8, 8)), "give it a scale_factor"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "by bicubic"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor of its own"),
        (nn.MaxPool2d(2, return_indices=True), "where its maxima were"),
        (nn.AdaptiveAvgPool2d((2, 3)), "output_size 2 x 3 is no square"),
    ],
)
def test_a_layer_without_a_counterpart_is_named_and_nothing_is_changed(layer, told):
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Sequential(layer))
    with pytest.raises(ValueError, match=rf"1\.0: .*{told}"):
        made_volumetric(network)
    assert type(network[0]) is nn.Conv2d


def test_a_layer_that_takes_volumes_may_be_put_in_before():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.LayerNorm(1), nn.Flatten())
    with torch.no_grad():
        assert made_volumetric(network)(torch.randn(2, 1, 6, 6, 6)).shape == (2, 4)


def test_a_layer_under_two_names_stays_one():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    network.append(network[0])
    made_volumetric(network)
    assert network[0] is network[2]
    assert len(list(network.parameters())) == 2
