from typing import Any
from unittest.mock import Mock

import lightning
import pytest
import torch
from torch import nn

from lightning_atlas.adaptation.delta import DELTA, channel_attention, feature_distance, loss_increases, watched
from lightning_atlas.networks import (
    GenesisUNet,
    MedNeXt,
    NnUNet,
    ResNetUNet,
    SegResNet,
    STUNet,
    SwinUNETR,
    UNet,
    as_network,
)

SHORT, TALL = (16, 16, 16), (64, 32, 32)
NETWORKS = {
    "unet": (lambda: UNet(features=(4, 8)), SHORT),
    "segresnet": (lambda: SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,)), SHORT),
    "genesis": (lambda: GenesisUNet(init_filters=2), SHORT),
    "nnunet": (lambda: NnUNet(1, 2, (4, 8), (3, 3), (1, 2), (1, 1, 1)), SHORT),
    "stu_net": (lambda: STUNet(1, 2, (4, 8), (1, 1), (1, 2)), SHORT),
    "resnet": (lambda: ResNetUNet(depth=10, init_filters=4, decoder_features=(8, 8, 8, 8, 8)), TALL),
    "mednext": (lambda: MedNeXt(1, 2, 4, depths=(1,) * 9), TALL),
    "swin_unetr": (lambda: SwinUNETR(feature_size=12), TALL),
}


@pytest.mark.parametrize("label", NETWORKS)
def test_each_stage_of_each_network_gives_features_once(label):
    build, sides = NETWORKS[label]
    network: Any = build().eval()
    seen: list[tuple[str, torch.Size]] = []
    body = [stage.name for stage in network.stages() if stage.part != "head"]
    with torch.no_grad(), watched(network, body, lambda name, features: seen.append((name, features.shape))):
        network(torch.randn(1, 1, *sides))
    assert [name for name, _ in seen] == body
    assert all(len(shape) == 5 and shape[0] == 1 for _, shape in seen)
    network(torch.randn(1, 1, *sides))
    assert len(seen) == len(body)


def test_the_distance_is_a_weighted_mean_of_squares():
    features, source = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 4, 5, 6)
    attention = torch.tensor([0.7, 0.2, 0.1])
    expected = 0.0
    for channel in range(3):
        squares = [(features[n, channel] - source[n, channel]).pow(2).mean() for n in range(2)]
        expected += 3 / 2 * attention[channel] * sum(squares) / 2
    torch.testing.assert_close(feature_distance(features, source, attention), expected)
    even = feature_distance(features, source, torch.full((3,), 1 / 3))
    torch.testing.assert_close(feature_distance(features, source), even)


def test_the_distance_does_not_depend_on_how_often_a_case_or_a_voxel_is_repeated():
    features, source = torch.randn(1, 3, 2, 2, 2), torch.randn(1, 3, 2, 2, 2)
    more = [each.repeat(4, 1, 2, 2, 1) for each in (features, source)]
    torch.testing.assert_close(feature_distance(*more), feature_distance(features, source))


def test_attention_sums_to_one_and_follows_the_increases_not_their_scale():
    increases = torch.tensor([0.0, 1e-4, 3e-4, -1e-4])
    attention = channel_attention(increases)
    assert attention.sum() == pytest.approx(1.0)
    assert attention.argsort().tolist() == increases.argsort().tolist()
    torch.testing.assert_close(channel_attention(1000 * increases + 7), attention)
    assert torch.equal(channel_attention(torch.zeros(4)), torch.full((4,), 0.25))


class TwoChannels(nn.Module):
    """Only channel 1 of the body reaches the output."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv3d(1, 3, 1), nn.Conv3d(3, 1, 1, bias=False)
        self.head.weight.data.copy_(torch.tensor([0.0, 2.0, 0.0]).view(1, 3, 1, 1, 1))

    def forward(self, image):
        return self.head(self.body(image))


def test_the_loss_grows_by_what_a_channel_gave():
    network: Any = as_network(TwoChannels(), encoder=["body"], decoder=[], head=["head"]).eval()
    image = torch.randn(2, 1, 4, 4, 4)
    target = network(image).detach()
    found = loss_increases(network, ["body"], image, lambda out: {"loss": (out - target).square().mean()})
    assert list(found) == ["body"]
    torch.testing.assert_close(found["body"], torch.tensor([0.0, float(target.square().mean()), 0.0]))
    assert not network.body._forward_hooks


def test_arguments_out_of_range_are_refused():
    wrongs: list[dict[str, Any]] = [{"weight": 0.0}, {"attention_batches": -1}, {"attention_after": 1.0}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DELTA(**wrong)


class Tokens(nn.Module):
    """Hands on batch, tokens, features; and a stage of which nothing can be seen."""

    def __init__(self):
        super().__init__()
        self.body, self.pair, self.head = nn.Linear(1, 3), Pair(), nn.Conv3d(3, 2, 1)

    def forward(self, image):
        tokens, _ = self.pair(self.body(image.flatten(2).transpose(1, 2)))
        return self.head(tokens.transpose(1, 2).unflatten(2, image.shape[2:]))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, tokens):
        return self.inner(tokens), None


def test_of_tokens_the_features_lie_last_and_a_pair_shows_nothing():
    network: Any = as_network(Tokens(), encoder=["body", "pair"], decoder=[], head=["head"])
    image, seen = torch.randn(1, 1, 4, 4, 4), {}
    with watched(network, ["body", "pair"], lambda name, features: seen.update({name: features.shape})):
        network(image)
    assert seen == {"body": (1, 3, 64)}
    with watched(network, ["body"], lambda name, features: torch.zeros_like(features)):
        without = network(image)
    assert float(without.detach().std((2, 3, 4)).max()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_source_has_the_precision_in_which_the_network_trains(dtype, make_toy):
    network, delta = make_toy(1), DELTA()
    (watching,) = delta.callbacks()
    delta.build(network, {"head"})  # before a trainer turns the network into half precision
    module: Any = lightning.LightningModule()
    module.network, module.fresh = network, {"head"}
    watching.on_train_start(Mock(spec=lightning.Trainer), module.to(dtype))
    image = torch.randn(2, 1, 4, 4, 4, dtype=dtype)
    network(image)
    penalty = delta.penalty(network, image)["delta"]
    assert penalty.dtype == torch.float32
    assert penalty > 0  # dropout and the statistics of the batch
