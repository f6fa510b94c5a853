import math

import pytest
import torch
from torch import nn

from lightning_atlas.intake.inflation import (
    head_rows,
    output_names,
    same_names,
    start_at_prior,
)
from lightning_atlas.networks import GenesisUNet, UniversalNetwork


@pytest.mark.parametrize(
    ("outputs", "names"),
    [(3, ("background", "liver", "spleen")), (2, ("liver", "spleen")), (1, None), (4, None)],
)
def test_outputs_are_classes_with_or_without_background_and_another_count_says_nothing(outputs, names):
    assert output_names(outputs, ("liver", "spleen")) == names
    assert output_names(outputs, ()) is None


def test_same_names_ignores_order_and_position():
    assert same_names(("background", "spleen", "liver", "colon"), ("background", "liver", "eye")) == {0: 0, 1: 2}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_of_the_same_name_are_the_source_and_the_others_stay(axis, dtype):
    source = torch.randn(4, 4, 2, 2, 2).to(dtype)
    target = torch.randn(3, 4, 2, 2, 2) if axis == 0 else torch.randn(4, 3, 2, 2, 2)
    before = target.clone()
    result = head_rows(target, source, {0: 0, 2: 3}, axis)
    for ours, theirs in ((0, 0), (2, 3)):
        assert torch.equal(result.unbind(axis)[ours], source.unbind(axis)[theirs].float())
    assert torch.equal(result.unbind(axis)[1], before.unbind(axis)[1])
    assert torch.equal(target, before)
    assert result.dtype == torch.float32


def zero_weights(network):
    nn.init.zeros_(network.head.weight)
    return network


def test_a_sigmoid_head_without_weights_predicts_each_share(make_toy):
    network = zero_weights(make_toy(1, outputs=2))
    start_at_prior(network, ("liver", "eye"), {"liver": 0.2, "eye": 1e-6})
    shares = network.eval()(torch.randn(1, 1, 4, 4, 4)).sigmoid()[0, :, 0, 0, 0]
    torch.testing.assert_close(shares, torch.tensor([0.2, 1e-6]))


def test_a_softmax_head_without_weights_predicts_each_share_and_the_rest_as_background(make_toy):
    network = zero_weights(make_toy(1, outputs=3))
    start_at_prior(network, ("liver", "eye"), 0.05)
    shares = network.eval()(torch.randn(1, 1, 4, 4, 4)).softmax(1)[0, :, 0, 0, 0]
    torch.testing.assert_close(shares, torch.tensor([0.9, 0.05, 0.05]))


def test_outputs_that_are_not_fresh_keep_their_bias(make_toy):
    network, before = make_toy(1, outputs=3), make_toy(1, outputs=3).head
    start_at_prior(network, ("liver", "eye"), 0.1, fresh=["eye"])
    assert torch.equal(network.head.bias[:2], before.bias[:2])
    assert network.head.bias[2].item() == pytest.approx(math.log(0.1))
    assert torch.equal(network.head.weight, before.weight)


@pytest.mark.parametrize(
    ("prior", "told"),
    [
        (0.6, "leaves background a share of -0.2"),
        ({"liver": 0.1}, "no share of eye"),
        ({"liver": 0.0, "eye": 0.1}, "leaves liver a share of 0 "),
    ],
)
def test_shares_that_cannot_be_are_refused(prior, told, make_toy):
    with pytest.raises(ValueError, match=told):
        start_at_prior(make_toy(1, outputs=3), ("liver", "eye"), prior)


def test_a_head_of_other_outputs_is_named(make_toy):
    with pytest.raises(ValueError, match="has 5 outputs, which are not those of 2 classes"):
        start_at_prior(make_toy(1, outputs=5), ("liver", "eye"), 0.1)


def test_a_head_without_biases_is_named():
    network = UniversalNetwork(GenesisUNet(init_filters=2), out_channels=2)
    with pytest.raises(ValueError, match="the head of UniversalNetwork has no biases"):
        start_at_prior(network, ("liver", "eye"), 0.1)
