import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn import functional as F

from lightning_atlas.networks import GenesisUNet, Network
from lightning_atlas.networks.base import check_stages

CONVOLUTION = ("conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias")
STATISTICS = ("bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked")


def published_names() -> list[str]:
    ops = [f"ops.{number}.{name}" for number in (0, 1) for name in (*CONVOLUTION, *STATISTICS)]
    down = [f"down_tr{level}.{name}" for level in (64, 128, 256, 512) for name in ops]
    up = [f"up_tr{level}.{name}" for level in (256, 128, 64) for name in ("up_conv.weight", "up_conv.bias", *ops)]
    return [*down, *up, "out_tr.final_conv.weight", "out_tr.final_conv.bias"]


@pytest.mark.parametrize(("outputs", "parameters"), [(1, 19_073_665), (18, 19_074_770), (25, 19_075_225)])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_the_default_has_the_tensors_of_the_published_network(outputs, parameters, batch_statistics):
    with torch.device("meta"):
        network = GenesisUNet(out_channels=outputs, batch_statistics=batch_statistics)
    assert list(network.state_dict()) == published_names()
    assert len(published_names()) == 106
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    check_stages(network)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("down_tr64.ops.0.conv1.weight", (32, 1, 3, 3, 3)),
        ("down_tr64.ops.1.conv1.weight", (64, 32, 3, 3, 3)),
        ("down_tr512.ops.0.conv1.weight", (256, 256, 3, 3, 3)),
        ("down_tr512.ops.1.conv1.weight", (512, 256, 3, 3, 3)),
        ("up_tr256.up_conv.weight", (512, 512, 2, 2, 2)),
        ("up_tr256.ops.0.conv1.weight", (256, 768, 3, 3, 3)),
        ("up_tr64.ops.0.conv1.weight", (64, 192, 3, 3, 3)),
        ("out_tr.final_conv.weight", (2, 64, 1, 1, 1)),
    ],
)
def test_shapes_are_the_published_ones(name, shape):
    with torch.device("meta"):
        assert GenesisUNet().state_dict()[name].shape == shape


def tiny(**arguments) -> GenesisUNet:
    """A narrow network none of whose norms is the identity."""
    network = GenesisUNet(init_filters=2, **arguments)
    for name, tensor in network.state_dict().items():
        if "bn1" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return network


def recomputed(tensors: dict[str, torch.Tensor], image: torch.Tensor, batch_statistics: bool) -> torch.Tensor:
    """The network written out a second time, over the tensors of its state dict."""

    def convolve(maps: torch.Tensor, level: str) -> torch.Tensor:
        for number in (0, 1):
            of = {name: tensors[f"{level}.ops.{number}.{name}"] for name in (*CONVOLUTION, *STATISTICS)}
            maps = F.conv3d(maps, of["conv1.weight"], of["conv1.bias"], padding="same")
            mean, variance = of["bn1.running_mean"], of["bn1.running_var"]
            if batch_statistics:
                variance, mean = torch.var_mean(maps, dim=(0, 2, 3, 4), correction=0)
            shape = (1, -1, 1, 1, 1)
            maps = (maps - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
            maps = (maps * of["bn1.weight"].view(shape) + of["bn1.bias"].view(shape)).clamp(min=0)
        return maps

    at_64 = convolve(image, "down_tr64")
    at_128 = convolve(F.max_pool3d(at_64, 2), "down_tr128")
    at_256 = convolve(F.max_pool3d(at_128, 2), "down_tr256")
    maps = convolve(F.max_pool3d(at_256, 2), "down_tr512")
    for level, skip in (("up_tr256", at_256), ("up_tr128", at_128), ("up_tr64", at_64)):
        up = F.conv_transpose3d(maps, tensors[f"{level}.up_conv.weight"], tensors[f"{level}.up_conv.bias"], stride=2)
        maps = convolve(torch.cat([up, skip], dim=1), level)
    return F.conv3d(maps, tensors["out_tr.final_conv.weight"], tensors["out_tr.final_conv.bias"])


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_it_computes_what_the_published_network_computes(batch_statistics):
    network = tiny(in_channels=2, out_channels=3, batch_statistics=batch_statistics).double().eval()
    image = torch.rand(2, 2, 16, 8, 24, dtype=torch.double)
    torch.testing.assert_close(network(image), recomputed(network.state_dict(), image, batch_statistics))


@pytest.mark.parametrize("training", [False, True])
def test_batch_statistics_depend_on_the_batch_and_leave_the_stored_ones_alone(training):
    network = tiny(batch_statistics=True).train(training)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    images = torch.rand(2, 1, 16, 16, 16)
    images[1] *= 3
    alone, beside = network(images[:1]), network(images)[:1]
    assert (alone - beside).abs().max() > 0.01
    assert len(before) == 42
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


def test_without_them_a_prediction_does_not_depend_on_the_batch():
    network, images = tiny().eval(), torch.rand(2, 1, 16, 16, 16)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_without_them_every_norm_is_torchs_and_stores_what_it_saw():
    network = tiny()
    norms = {name: module for name, module in network.named_modules() if name.endswith("bn1")}
    assert len(norms) == 14
    assert {type(module) for module in norms.values()} == {nn.BatchNorm3d}
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train()(torch.rand(2, 1, 16, 16, 16))
    assert not any(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


def test_both_agree_while_training():
    ours, switched = tiny().train(), tiny(batch_statistics=True).train()
    switched.load_state_dict(ours.state_dict(), strict=True)
    image = torch.rand(2, 1, 16, 16, 16)
    torch.testing.assert_close(switched(image), ours(image))


def test_turning_batch_norms_into_synchronised_ones_keeps_the_switch():
    network = tiny(batch_statistics=True).eval()
    images = torch.rand(2, 1, 16, 16, 16)
    expected = network(images)
    assert torch.equal(nn.SyncBatchNorm.convert_sync_batchnorm(network)(images), expected)


def test_a_recipe_builds_it():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Network)
    recipe = {"network": {"class_path": "GenesisUNet", "init_args": {"init_filters": 2, "batch_statistics": True}}}
    network = parser.instantiate(parser.parse_object(recipe)).network
    assert network.conventions() == {"batch_statistics": "true"}
    assert network(torch.rand(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)
