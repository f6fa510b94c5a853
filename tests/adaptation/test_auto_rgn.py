import math

import pytest
import torch
from torch import nn

from lightning_atlas.adaptation import AdaptationPlan
from lightning_atlas.adaptation.auto_rgn import AutoRGN, relative_gradient_norms
from lightning_atlas.networks import UNet


def parameter(value, gradient):
    made = nn.Parameter(torch.tensor(value))
    made.grad = torch.tensor(gradient)
    return made


def test_the_norm_of_the_gradient_is_taken_relative_to_that_of_the_tensor():
    found = relative_gradient_norms({"a": parameter([3.0, 4.0], [0.0, 2.0]), "b": parameter([1.0], [-3.0])})
    assert found == pytest.approx({"a": 2 / 5, "b": 3.0})


def test_a_tensor_of_zeros_has_no_relative_norm_and_an_overflow_measures_nothing():
    assert relative_gradient_norms({"a": parameter([0.0], [1.0]), "b": parameter([1.0], [1.0])}) == {"b": 1.0}
    assert relative_gradient_norms({"a": parameter([1.0], [math.inf]), "b": parameter([1.0], [1.0])}) == {}
    assert relative_gradient_norms({}) == {}


def test_normalisation_of_the_source_is_held_that_of_fresh_stages_is_not():
    network = UNet(features=(4, 8))
    norms = {name for name, each in network.named_parameters() if ".N." in name}
    held = AutoRGN().holds(network, set())
    assert held == norms
    assert held
    fresh = {stage.name for stage in network.stages() if stage.part == "decoder"}
    assert AutoRGN().holds(network, fresh) == {name for name in norms if name.startswith("encoder")}


def test_statistics_of_the_source_stand_still_and_those_of_fresh_stages_follow(make_toy):
    network = make_toy(0)
    before = {name: each.clone() for name, each in network.named_buffers()}
    plan = AdaptationPlan([AutoRGN()], network, {"decoder.1", "head"}, 4)
    plan.freeze()
    network.train()
    plan.set_modes(0)
    network(torch.randn(2, 1, 4, 4, 4))
    changed = {name for name, each in network.named_buffers() if not torch.equal(each, before[name])}
    assert changed == {name for name in before if name.startswith("decoder.1")} != set()
    assert network.encoder[0][2].training  # dropout


def test_what_was_not_measured_has_the_full_rate():
    assert AutoRGN().factor("encoder.0.weight") == 1.0
    with pytest.raises(ValueError, match="batches of AutoRGN is 0"):
        AutoRGN(0)
