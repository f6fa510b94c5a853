"""Features are those that the head reads, at the voxels asked for; voxels are those that somebody drew."""

import pytest
import torch
from monai.networks.nets.basic_unet import BasicUNet
from torch.nn import functional as F

from lightning_atlas.networks import (
    GenesisUNet,
    NnUNet,
    SegResNet,
    SwinUNETR,
    UNet,
    UniversalNetwork,
    as_network,
)
from lightning_atlas.networks.base import output_layer
from lightning_atlas.networks.valid_unet import ValidUNet
from lightning_atlas.ranking.features import draw_voxels, read_features

SIDE = 16


def adopted():
    inner = BasicUNet(features=(4, 4, 4, 4, 4, 4))
    levels = [f"down_{n}" for n in (1, 2, 3, 4)]
    up = [f"upcat_{n}" for n in (4, 3, 2, 1)]
    return as_network(inner, ["conv_0", *levels], up, ["final_conv"], 16)


@pytest.mark.parametrize(
    ("make", "sides"),
    [
        (lambda: UNet(features=(4, 6, 8), out_channels=3), (16, 16, 8)),
        (lambda: SegResNet(init_filters=8, out_channels=3), (16, 16, 8)),
        (
            lambda: NnUNet(features=[4, 6], kernel_sizes=[[3] * 3] * 2, strides=[[1] * 3, [2] * 3], depths=[1] * 3),
            (16, 16, 8),
        ),
        (lambda: SwinUNETR(feature_size=12), (64, 32, 32)),
        (lambda: ValidUNet(features=(2, 2)), (28, 32, 28)),
        (adopted, (32, 16, 16)),
    ],
    ids=["unet", "segresnet", "nnunet", "swin_unetr", "valid_unet", "adopted"],
)
def test_the_head_makes_the_logits_of_what_is_read(make, sides):
    network = make().eval()
    image = torch.randn(1, 1, *sides)
    context = network.context
    places = torch.stack([torch.randint(context, side - context, (20,)) for side in sides], dim=1)
    found = read_features(network, image, places)
    with torch.inference_mode():
        i, j, k = (places - context).T
        torch.testing.assert_close(found.logits, network(image)[0, :, i, j, k].T)
    layer = network.get_submodule(output_layer(network))
    made = F.linear(found.fine, layer.weight.detach().flatten(1), layer.bias.detach())
    torch.testing.assert_close(made, found.logits, atol=1e-4, rtol=1e-4)
    assert found.levels
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_coarse_level_is_read_where_the_voxel_lies():
    network = UNet(features=(4, 6, 8)).eval()
    image, kept = torch.randn(1, 1, SIDE, SIDE, 8), []
    network.decoder[0].register_forward_hook(lambda *args: kept.append(args[2]))
    places = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 0, 0], [15, 15, 7]])
    level = read_features(network, image, places).levels["decoder.0"]
    torch.testing.assert_close(level.features, kept[0][0][:, [0, 0, 1, 7], [0, 0, 0, 7], [0, 0, 0, 3]].T)
    assert level.cells.tolist() == [0, 0, 8 * 4, 8 * 8 * 4 - 1]


def test_a_text_head_is_read_before_its_last_shared_layer():
    network = UniversalNetwork(GenesisUNet(init_filters=4), out_channels=2, text_features=8).eval()
    found = read_features(network, torch.randn(1, 1, SIDE, SIDE, SIDE), torch.randint(SIDE, (5, 3)))
    assert found.fine.shape == (5, network.backbone.fine_features)


def batch(label, states, drawn, background):
    return {
        "label": label[None],
        "states": torch.tensor(states, dtype=torch.int8)[None],
        "drawn": torch.tensor(drawn)[None],
        "background": torch.tensor(background, dtype=torch.int8)[None],
    }


@pytest.fixture
def window():
    """Rows: unknown, neither class, class 0, class 1, class 0 of which class 1 was not drawn."""
    label = torch.randint(5, (8, 8, 8)).short()
    states = [[-1, -1], [0, 0], [1, 0], [0, 1], [1, 0]]
    drawn = [[False, False], [True, True], [True, True], [True, True], [True, False]]
    return batch(label, states, drawn, [-1, 1, 0, 0, 0])


def test_voxels_are_drawn_from_each_class_and_the_background_alone(window):
    found = draw_voxels(window, 10, True, 0, torch.Generator())
    rows = window["label"][0][tuple(found.places.T)].tolist()
    expected = {1: [0, 0, 1], 2: [1, 0, 0], 3: [0, 1, 0], 4: [1, -1, 0]}
    assert found.states.tolist() == [expected[row] for row in rows]  # the unknown row 0 is never taken
    assert (rows.count(1), rows.count(3), rows.count(2) + rows.count(4)) == (10, 10, 10)
    assert draw_voxels(window, 10, False, 0, torch.Generator()).states.shape == (30, 2)


def test_voxels_of_the_context_are_not_drawn(window):
    places = draw_voxels(window, 100, True, 2, torch.Generator()).places
    assert (places.min(), places.max()) == (2, 5)


def test_a_network_of_whole_scans_is_refused():
    class Pooled(UNet):
        def forward(self, image):
            return super().forward(image).mean((2, 3, 4))

    with pytest.raises(ValueError, match="whole scans"):
        read_features(Pooled(features=(4, 6)), torch.randn(1, 1, 8, 8, 8), torch.zeros(1, 3).long())
