import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from lightning_atlas.callbacks.stage_weights import distances, stage_weights
from lightning_atlas.networks import NnUNet, UNet
from lightning_atlas.networks.base import stage_parameters


def nnunet() -> NnUNet:
    return NnUNet(1, 2, (4, 6), (3, 3), (1, 2), (1, 1, 1))  # each tensor has several names


@pytest.mark.parametrize("network", [UNet(features=(4, 6)), nnunet()], ids=["UNet", "NnUNet"])
def test_a_stage_has_the_weights_that_its_parameters_are(network):
    found = stage_weights(network)
    for stage in network.stages():
        parameters = stage_parameters(network, stage)
        assert list(found[stage.name]) == list(parameters)
        assert all(torch.equal(found[stage.name][name], each) for name, each in parameters.items())


def test_the_distance_is_the_length_of_the_way_over_the_length_of_what_there_was():
    network = UNet(features=(4, 6))
    before = stage_weights(network, {"encoder.0.0.conv.weight"})
    stage = network.stages()[0]
    start = [p.detach().clone() for n, p in stage_parameters(network, stage).items() if n != "encoder.0.0.conv.weight"]
    with torch.no_grad():
        for parameter in network.encoder[0].parameters():
            parameter += torch.randn_like(parameter)
        for parameter in network.head.parameters():
            parameter *= 1.5
    now = [p for n, p in stage_parameters(network, stage).items() if n != "encoder.0.0.conv.weight"]
    flat, flat_now = nn.utils.parameters_to_vector(start), nn.utils.parameters_to_vector(now)
    far = distances(before, stage_weights(network))
    assert far["encoder.0"] == pytest.approx(((flat_now - flat).norm() / flat.norm()).item(), rel=1e-5)
    assert far["head"] == pytest.approx(0.5)
    assert far["encoder.1"] == far["decoder.0"] == 0


def test_a_stage_without_known_weights_has_no_distance():
    network = UNet(features=(4, 6))
    before = stage_weights(network, {"head.weight", "head.bias"})
    assert distances(before, stage_weights(network))["head"] is None


def test_a_weight_that_is_computed_is_compared_as_the_layer_uses_it():
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.share = nn.Parameter(torch.zeros(()))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * (1 + self.share)

    network = UNet(features=(4, 6))
    before = stage_weights(copy.deepcopy(network))
    doubled = Doubled()
    register_parametrization(network.head, "weight", doubled)
    assert stage_weights(network).keys() == before.keys()
    assert distances(before, stage_weights(network))["head"] == 0
    with torch.no_grad():
        doubled.share.fill_(1.0)
        network.get_parameter("head.bias").mul_(2)
    assert distances(before, stage_weights(network))["head"] == pytest.approx(1.0)
