import copy
from functools import cache

import pytest
import torch
from jsonargparse import ArgumentParser
from monai.networks.nets.flexible_unet import FlexibleUNet
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from lightning_atlas.intake import zoo
from lightning_atlas.intake.loading import load_weights
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.networks import Network, ResNetUNet
from lightning_atlas.networks.base import check_stages

DEPTHS = [10, 18, 34, 50, 101]
PUBLISHED = {10: 14.36, 18: 32.99, 34: 63.31, 50: 46.21, 101: 85.31}
"""Millions of numbers in the encoders, as in MedicalNet's README, which counts the stored statistics too."""


def small(**arguments) -> ResNetUNet:
    return ResNetUNet(init_filters=4, decoder_features=(8, 6, 4, 4, 4), **arguments)


@cache
def image() -> torch.Tensor:
    return torch.rand(2, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))


class MedicalNet:
    """MedicalNet's encoder on an encoder's tensors: its last two layers keep the grid and are dilated by 2 and by 4."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state

    def norm(self, name, maps):
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        return F.batch_norm(maps, mean, variance, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def convolve(self, name, maps, stride=1, dilation=1):
        kernel = self.state[f"{name}.weight"]
        dilation = dilation if kernel.shape[2] == 3 else 1
        return F.conv3d(maps, kernel, None, stride, dilation * (kernel.shape[2] // 2), dilation)

    def shortcut(self, name, maps, channels, stride):
        if f"{name}.downsample.0.weight" in self.state:
            return self.norm(f"{name}.downsample.1", self.convolve(f"{name}.downsample.0", maps, stride))
        maps = F.avg_pool3d(maps, 1, stride)
        return torch.cat([maps, maps.new_zeros(len(maps), channels - maps.shape[1], *maps.shape[2:])], 1)

    def block(self, name, maps, stride, dilation):
        count = sum(key.startswith(f"{name}.conv") for key in self.state)
        inner = maps
        for number in range(1, count + 1):
            here = stride if number == count - 1 else 1
            inner = self.norm(f"{name}.bn{number}", self.convolve(f"{name}.conv{number}", inner, here, dilation))
            inner = F.relu(inner) if number < count else inner
        return F.relu(inner + self.shortcut(name, maps, inner.shape[1], stride))

    def layers(self, image):
        maps = F.max_pool3d(F.relu(self.norm("bn1", self.convolve("conv1", image, 2))), 3, 2, 1)
        for layer, stride, dilation in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
            count = len({key.split(".")[1] for key in self.state if key.startswith(f"layer{layer}.")})
            for number in range(count):
                maps = self.block(f"layer{layer}.{number}", maps, stride if number == 0 else 1, dilation)
            yield maps


@pytest.mark.parametrize("depth", [10, 18, 50])
def test_the_encoder_has_medicalnets_features_at_every_second_and_every_fourth_voxel(depth):
    encoder = small(depth=depth).encoder.eval()
    for name, buffer in encoder.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5 if name.endswith("var") else -0.5, 1.0)
    with torch.no_grad():
        theirs = list(MedicalNet(encoder.state_dict()).layers(image()))
        ours = encoder(image())[1:]
    assert [each.shape[2:] for each in ours] == [(16, 8, 8), (8, 4, 4), (4, 2, 2), (2, 1, 1)]
    for mine, expected, step in zip(ours, theirs, (1, 1, 2, 4), strict=True):
        assert expected.std() > 0.01
        torch.testing.assert_close(mine, expected[..., ::step, ::step, ::step])


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_encoder_has_as_many_numbers_as_published(depth):
    with zoo.without_memory():
        encoder = ResNetUNet(depth=depth).encoder
    counted = sum(each.numel() for each in encoder.state_dict().values())
    assert counted / 1e6 == pytest.approx(PUBLISHED[depth], abs=0.006)


def test_the_small_ones_have_as_many_tensors_as_the_published_files():
    with zoo.without_memory():
        assert [len(ResNetUNet(depth=depth).encoder.state_dict()) for depth in (10, 18)] == [72, 102]


@pytest.mark.parametrize("depth", [10, 50])
def test_names_and_shapes_are_those_of_monais_flexible_unet(depth):
    with zoo.without_memory():
        theirs = FlexibleUNet(1, 3, f"resnet{depth}", pretrained=False, spatial_dims=3).state_dict()
        ours = ResNetUNet(out_channels=3, depth=depth).state_dict()
    assert [(name, each.shape) for name, each in ours.items()] == [(name, each.shape) for name, each in theirs.items()]


def test_without_its_dilation_it_computes_what_monais_flexible_unet_computes():
    theirs = FlexibleUNet(1, 3, "resnet10", pretrained=False, spatial_dims=3).eval()
    ours = ResNetUNet(out_channels=3, depth=10).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        assert not torch.allclose(ours(image()), theirs(image()))
        for layer in (ours.encoder.layer3, ours.encoder.layer4):
            first = layer.get_submodule("0.conv1")
            assert isinstance(first, nn.Conv3d)
            first.dilation = first.padding = (1, 1, 1)
        torch.testing.assert_close(ours(image()), theirs(image()))


@pytest.mark.parametrize("depth", [10, 18, 50])
def test_stages_hold_every_tensor_once_in_the_order_in_which_a_forward_pass_calls_them(depth):
    network = small(depth=depth).eval()
    check_stages(network)
    stages = network.stages()
    assert [stage.part for stage in stages] == ["encoder"] * 5 + ["decoder"] * 5 + ["head"]
    listed = [name for stage in stages for name in stage.modules]
    called = []
    for name in listed:
        network.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.append(name))
    assert network(image()).shape == (2, 2, 64, 32, 32)
    assert called == listed


def test_sharded_by_stages_it_learns_what_it_learns_whole(tmp_path):
    whole, network = small(depth=18), small(depth=18)
    network.load_state_dict(whole.state_dict())
    whole(image()).square().mean().backward()
    init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        for stage in network.stages():
            fully_shard([network.get_submodule(name) for name in stage.modules])
        fully_shard(network)
        network(image()).square().mean().backward()
        found = {
            name: each.grad.full_tensor() for name, each in network.named_parameters() if isinstance(each.grad, DTensor)
        }
    finally:
        destroy_process_group()
    torch.testing.assert_close(found, {name: each.grad for name, each in whole.named_parameters()})


def test_a_shortcut_without_parameters_carries_gradients():
    network = small(depth=18).eval()
    for name, parameter in network.encoder.named_parameters():
        if name.startswith("layer2.0.bn2"):
            nn.init.zeros_(parameter)
    inner = network.encoder.layer1(torch.rand(1, 4, 4, 4, 4)).detach().requires_grad_()
    network.encoder.layer2(inner).sum().backward()
    assert inner.grad is not None
    reached = inner.grad.abs().sum(dim=(0, 1)) > 0
    assert reached[::2, ::2, ::2].all()
    assert reached.sum() == 8


def test_a_copy_is_a_network_of_its_own():
    network = small(depth=18).eval()
    copied = copy.deepcopy(network)
    with torch.no_grad():
        expected = network(image())
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(copied(image()), expected)


def test_the_features_are_what_the_head_reads():
    network = small(depth=50).eval()
    found = network.features(image())
    assert found.coarse.shape == (2, network.coarse_features, 2, 1, 1)
    assert found.fine.shape == (2, network.fine_features, 64, 32, 32)
    assert torch.equal(network.segmentation_head(found.fine), network(image()))
    assert network.output_axes() == {"segmentation_head.0.weight": 0, "segmentation_head.0.bias": 0}


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda: small()(torch.rand(1, 1, 64, 48, 32)), r"multiples of 32.* 64 x 64 x 32 voxels"),
        (lambda: small().train()(torch.rand(1, 1, 32, 32, 32)), "set one side .* to 64 or more"),
        (lambda: ResNetUNet(decoder_features=(8, 4)), r"five decoder_features.*found \[8, 4\]"),
    ],
)
def test_what_it_cannot_take_is_refused(act, told):
    with pytest.raises(ValueError, match=told):
        act()


def test_a_single_cube_can_be_predicted_and_several_can_be_learnt_from():
    network = small().eval()
    assert network(torch.rand(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)
    network.train()(torch.rand(2, 1, 32, 32, 32)).mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("depth", "notes"), [(18, 0), (10, 1)])
def test_weights_of_another_depth_are_told(depth, notes):
    trained = {name: each for name, each in small(depth=18).state_dict().items() if name.startswith("encoder.")}
    spec = {"class_path": "lightning_atlas.networks.ResNetUNet", "init_args": {"depth": 18}}
    source = SourceWeights(trained, None, "some.pth", "0" * 64, spec, fills=("encoder.",))
    report = load_weights(small(depth=depth), source)
    assert len(report.notes) == notes
    assert all("used with depth: 18, and the network has 10" in note for note in report.notes)


def test_a_recipe_builds_it_and_an_unknown_depth_is_refused():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Network)
    recipe = {"network": {"class_path": "ResNetUNet", "init_args": {"depth": 18, "init_filters": 4}}}
    assert len(parser.instantiate(parser.parse_object(recipe)).network.encoder.state_dict()) == 102
    recipe["network"]["init_args"]["depth"] = 20
    with pytest.raises(Exception, match="20"):
        parser.parse_object(recipe)
