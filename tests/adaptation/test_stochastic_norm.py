import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_atlas.adaptation.stochastic_norm import StochasticNorm, StochasticNorm3d
from lightning_atlas.networks import UNet, as_network


class Batchy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8, eps=1e-3, momentum=0.2))
        self.last = nn.Conv3d(8, 2, 1)

    def forward(self, image):
        return self.last(self.body(image))


def network() -> Any:
    torch.manual_seed(1)
    made: Any = as_network(Batchy(), encoder=["body"], decoder=[], head=["last"])
    made.body[1].running_mean.normal_()
    made.body[1].running_var.uniform_(0.5, 2)
    nn.init.normal_(made.body[1].weight)
    return made


IMAGE = torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(3))


def test_keys_values_and_evaluation_are_those_of_batch_norm():
    plain = network()
    changed = copy.deepcopy(plain)
    StochasticNorm().build(changed, set())
    assert isinstance(changed.body[1], StochasticNorm3d)
    assert [*changed.state_dict()] == [*plain.state_dict()]
    assert [name for name, _ in changed.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert torch.equal(changed.eval()(IMAGE), plain.eval()(IMAGE))
    assert (changed.body[1].eps, changed.body[1].momentum) == (1e-3, 0.2)


def test_each_channel_is_normalised_by_the_batch_or_by_the_running_statistics():
    changed, plain = network(), network()
    StochasticNorm().build(changed, set())
    changed.body[1].seed = 5
    found = changed.train().body(IMAGE)
    by_running, by_batch = plain.eval().body(IMAGE), plain.train().body(IMAGE)
    of_batch = [torch.allclose(found[:, n], by_batch[:, n], atol=1e-6) for n in range(8)]
    of_running = [torch.allclose(found[:, n], by_running[:, n], atol=1e-6) for n in range(8)]
    assert [not each for each in of_batch] == of_running
    assert 0 < sum(of_batch) < 8
    torch.testing.assert_close(changed.body[1].state_dict(), plain.body[1].state_dict())


@pytest.mark.parametrize(("p", "mode"), [(1.0, True), (0.0, False)])
def test_the_ends_are_batch_norm_in_training_and_in_evaluation_gradients_included(p, mode):
    changed, plain = network().train(), network().train(mode)
    StochasticNorm(p).build(changed, set())
    for each in (changed, plain):
        each(IMAGE).square().sum().backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in changed.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-4)


def test_half_of_the_channels_are_drawn_and_a_seed_draws_the_same():
    layer = StochasticNorm3d(2000).train()
    layer.running_mean = torch.full((2000,), 100.0)

    def drawn(seed):
        layer.seed = seed
        return layer(torch.randn(2, 2000, 1, 1, 2)).mean((0, 2, 3, 4)).abs() < 1

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert drawn(1).float().mean() == pytest.approx(0.5, abs=0.05)


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(ValueError, match="UNet has no BatchNorm3d"):
        StochasticNorm().build(UNet(features=(4, 8)), set())


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"p of StochasticNorm is 1\.5"):
        StochasticNorm(1.5)
