from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_atlas.adaptation.statistics import reestimate_statistics, statistic_layers
from lightning_atlas.adaptation.stochastic_norm import StochasticNorm3d


def network(norm: Any = nn.BatchNorm3d, **options: Any) -> Any:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv3d(1, 4, 3, padding=1), norm(4, **options), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Conv3d(4, 4, 3, padding=1), norm(4, **options)),
    )


def images(count=3):
    return [torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(n)) for n in range(count)]


def statistics(net: Any) -> list[Any]:
    layers: Any = statistic_layers(net)
    return [each.clone() for layer in layers.values() for each in (layer.running_mean, layer.running_var)]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_result_is_that_of_torch_where_nothing_is_dropped_out(momentum):
    ours, theirs = network(momentum=momentum), network(momentum=momentum)
    for each in (ours, theirs):
        each[3].p = 0.0
    reestimate_statistics(ours, images())
    update_bn(images(), theirs)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert float(ours[1].running_var.sub(1).abs().max()) > 0.1
    assert ours[1].momentum == momentum


def test_dropout_plays_no_part_and_modes_stay():
    net = network().train()
    net[4].eval()
    reestimate_statistics(net, images())
    first = statistics(net)
    reestimate_statistics(net, images())
    torch.testing.assert_close(first, statistics(net), rtol=0.0, atol=0.0)
    assert [module.training for module in net] == [True, True, True, True, False, True]


def test_instance_norm_with_running_statistics_counts():
    net = network(nn.InstanceNorm3d, track_running_stats=True)
    reestimate_statistics(net, images())
    inside = [net[0](image) for image in images()]
    expected = torch.stack([each.mean((0, 2, 3, 4)) for each in inside]).mean(0)
    torch.testing.assert_close(net[1].running_mean, expected)


def test_stochastic_layers_are_estimated_by_the_batch_alone():
    plain, stochastic = network(), network(StochasticNorm3d)
    reestimate_statistics(plain, images())
    reestimate_statistics(stochastic, images())
    torch.testing.assert_close(plain.state_dict(), stochastic.state_dict())
    assert stochastic[1].p == 0.5


def test_only_the_chosen_layers_change():
    net = network()
    before = net[1].running_var.clone()
    reestimate_statistics(net, images(), ["5"])
    assert torch.equal(net[1].running_var, before)
    assert not torch.equal(net[5].running_var, torch.ones(4))


def test_no_image_is_an_error_only_where_there_is_something_to_estimate():
    with pytest.raises(ValueError, match="training patches"):
        reestimate_statistics(network(), [])
    reestimate_statistics(nn.Conv3d(1, 2, 1), [])
