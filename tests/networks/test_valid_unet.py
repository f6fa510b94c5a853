import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_atlas.adaptation import LastStages
from lightning_atlas.networks import ValidUNet
from lightning_atlas.networks.base import check_stages, stage_parameters, without_context


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def test_it_has_the_published_number_of_parameters_in_the_published_layers():
    # The numbers of the summary that the authors' notebook prints.
    published = [
        *(896, 55360, 110656, 221312, 442496, 884992, 1769728, 3539456),
        *(5308672, 1769728, 1327232, 442496, 331840, 110656, 1495),
    ]
    network = ValidUNet(out_channels=23)
    found = [count(stage_parameters(network, stage).values()) for stage in network.stages()]
    assert found == published
    assert count(network.parameters()) == sum(published) == 16_317_015
    check_stages(network)


def test_the_last_two_stages_are_the_published_fine_tuning():
    network = ValidUNet(out_channels=23)
    stages = network.stages()
    held = LastStages(2).always_zero(stages, set(), 1)
    moving = [stage for stage in stages if stage.name not in held]
    assert count(each for stage in moving for each in stage_parameters(network, stage).values()) == 112_151


@torch.no_grad()
def test_132_voxels_become_44_on_grids_as_published():
    network = ValidUNet(features=(2, 2, 2, 2))
    seen = []
    for stage in network.stages():
        module = network.get_submodule(stage.name)
        module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[2]))
    assert network(torch.rand(1, 1, 132, 132, 132)).shape == (1, 2, 44, 44, 44)
    assert seen == [130, 128, 62, 60, 28, 26, 11, 9, 16, 14, 26, 24, 46, 44, 44]
    assert (network.context, network.size_offset, network.size_multiple) == (44, 92, 8)


@pytest.mark.parametrize("levels", [1, 2, 3])
@torch.no_grad()
def test_every_size_that_it_takes_comes_back_without_the_context(levels):
    network: Any = ValidUNet(features=[2] * levels)
    least, step, context = network.size_offset, network.size_multiple, network.context
    sides = (least, least + step, least + 3 * step)
    assert network(torch.rand(1, 1, *sides)).shape[2:] == tuple(side - 2 * context for side in sides)
    assert 0 < least - 2 * context <= step
    with pytest.raises(ValueError, match=f"sides are {least} voxels, or {step} more"):
        network(torch.rand(1, 1, least - 1, least, least))


def by_hand(network, image):
    """The same network, written out: valid convolutions, pools, the nearest voxel repeated, a crop, then the joint."""

    def twice(level, maps):
        for layer in level:
            maps = F.conv3d(maps, layer.weight, layer.bias).clamp(min=0)
        return maps

    top = twice(network.encoder[0], image)
    batch, channels, i, j, k = top.shape
    pooled = top.reshape(batch, channels, i // 2, 2, j // 2, 2, k // 2, 2).amax((3, 5, 7))
    below = twice(network.encoder[1], pooled)
    up = below.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    crops = [(whole - part) // 2 for whole, part in zip(top.shape[2:], up.shape[2:], strict=True)]
    skip = top[:, :, *(slice(crop, crop + part) for crop, part in zip(crops, up.shape[2:], strict=True))]
    return network.head(twice(network.decoder[0], torch.cat([up, skip], 1)))


@torch.no_grad()
def test_it_computes_what_is_written_out():
    network, image = ValidUNet(features=(2, 3), out_channels=3).double(), torch.randn(2, 1, 20, 22, 26).double()
    torch.testing.assert_close(network(image), by_hand(network, image))


@torch.no_grad()
def test_the_logits_lie_in_the_middle_of_the_image():
    network: Any = ValidUNet(features=(2, 3)).double()
    image = torch.randn(1, 1, 26, 24, 22).double()
    for layer in [*network.encoder[0], *network.encoder[1], *network.decoder[0]]:
        layer.weight.copy_((layer.weight + layer.weight.flip(2, 3, 4)) / 2)
    mirrored = network(image.flip(2, 3, 4)).flip(2, 3, 4)
    torch.testing.assert_close(mirrored, network(image))


def test_kernels_start_by_glorot_and_biases_at_zero_also_in_a_new_head():
    network: Any = ValidUNet(features=(8, 16))
    network.resize(9)
    for layer in (network.encoder[1][0], network.decoder[0][1], network.head):
        inputs, outputs = layer.weight.shape[1], layer.weight.shape[0]
        bound = math.sqrt(6 / ((inputs + outputs) * layer.weight[0, 0].numel()))
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25)
        assert not layer.bias.any()


def test_the_encoder_alone_gives_the_coarsest_maps():
    network = ValidUNet(features=(2, 3, 4))
    assert network.encoded(torch.rand(1, 1, 44, 44, 48)).shape == (1, network.coarse_features, 4, 4, 5)


def test_a_label_loses_the_context_and_nothing_else():
    label = torch.arange(6**3).reshape(1, 6, 6, 6)
    batch: Any = {"label": label, "image": torch.zeros(1, 1, 6, 6, 6)}
    assert torch.equal(without_context(batch, 2)["label"], label[:, 2:4, 2:4, 2:4])
    assert without_context(batch, 2)["image"] is batch["image"]
    assert without_context(batch, 0) is batch


def test_without_channels_there_is_no_network():
    with pytest.raises(ValueError, match=r"channels of each level, 1 or more; found \[4, 0\]"):
        ValidUNet(features=(4, 0))
