import pytest
import torch
from torch import nn

from lightning_atlas.adaptation.groups import (
    freeze,
    fresh_stages,
    parameter_groups,
    parameters_of,
    rest,
    stage_table,
)
from lightning_atlas.networks import SegResNet, UNet
from lightning_atlas.networks.base import Stage


def test_a_stage_is_fresh_by_its_parameters_not_by_its_counters(make_toy):
    network = make_toy(0)
    assert fresh_stages(network, {"encoder.0.1.num_batches_tracked", "encoder.1.1.running_mean"}) == set()
    assert fresh_stages(network, {"encoder.1.1.bias", "head.bias"}) == {"encoder.1", "head"}


@pytest.mark.parametrize("frozen", [[], ["encoder.0", "decoder.1"]])
@pytest.mark.parametrize("build", [UNet, SegResNet])
def test_each_trainable_parameter_is_in_exactly_one_group(build, frozen):
    network = build()
    frozen = frozen and [stage.name for stage in network.stages() if stage.part == "encoder"]
    assert freeze(network, parameters_of(network, frozen)) == set(frozen)
    grouped = [id(each) for group in parameter_groups(network) for each in group["params"]]
    assert sorted(grouped) == sorted(id(each) for each in network.parameters() if each.requires_grad)
    assert len(grouped) < len(list(network.parameters())) if frozen else True


def test_groups_follow_the_stages_and_inside_the_registration(make_toy):
    network = make_toy(0)
    groups = parameter_groups(network)
    assert [group["name"] for group in groups] == [stage.name for stage in network.stages()]
    order = [id(each) for each in network.parameters()]
    for group in groups:
        positions = [order.index(id(each)) for each in group["params"]]
        assert positions == sorted(positions)


def test_equal_parameters_are_told_apart_and_a_shared_one_counts_once(make_toy):
    network = make_toy(0)
    network.decoder[1][0].weight = nn.Parameter(network.decoder[1][0].weight.detach().clone())
    network.decoder[1][1] = network.decoder[0][1]  # one batch norm in two stages
    for group in parameter_groups(network):
        for each in group["params"]:
            each.data.fill_(1.0)
    groups = {group["name"]: [id(each) for each in group["params"]] for group in parameter_groups(network)}
    assert id(network.decoder[0][1].weight) in groups["decoder.0"]
    grouped = [each for group in groups.values() for each in group]
    assert sorted(grouped) == sorted({id(each) for each in network.parameters()})


def test_a_parameter_outside_the_stages_is_named(make_toy):
    network = make_toy(0)
    network.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"scale .* no stage of Toy"):
        parameter_groups(network)


def test_nothing_to_train_is_refused(make_toy):
    network = make_toy(0)
    everything = parameters_of(network, {stage.name for stage in network.stages()})
    assert everything == set(dict(network.named_parameters()))
    with pytest.raises(ValueError, match=r"nothing is left to train: the adaptation holds decoder\.0, decoder\.1"):
        freeze(network, everything)
    with pytest.raises(ValueError, match="nothing is left to train"):
        parameter_groups(network)


def test_a_stage_of_which_something_moves_is_not_frozen(make_toy):
    network = make_toy(0)
    assert freeze(network, {"encoder.0.0.weight", "head.weight", "head.bias"}) == {"head"}


def test_tensors_may_have_groups_of_their_own(make_toy):
    network = make_toy(0)
    groups = parameter_groups(network, per_tensor=True, weight_decay=0.5)
    assert {group["name"] for group in groups} == set(dict(network.named_parameters()))
    assert all(len(group["params"]) == 1 and group["name"].startswith(group["stage"]) for group in groups)
    assert {group["weight_decay"] for group in groups} == {0.5}


def test_a_frozen_stage_drops_nothing_and_the_others_do(make_toy):
    network = make_toy(1).train()
    rest(network, {"encoder.0"})
    image = torch.randn(1, 1, 4, 4, 4)
    assert torch.equal(network.encoder[0](image), network.encoder[0](image))
    features = network.encoder[0](image)
    assert not torch.equal(network.encoder[1](features), network.encoder[1](features))


def test_a_bare_parameter_may_be_a_stage(make_toy):
    network = make_toy(0)
    network.position = nn.Parameter(torch.ones(3))
    listed = [*network.stages(), Stage("position", "encoder", ("position",))]
    network.stages = lambda: listed
    rest(network, {"position"})
    freeze(network, {"position"})
    assert not network.position.requires_grad
    assert "position" not in [group["name"] for group in parameter_groups(network)]


def test_the_table_has_a_line_for_each_stage_and_adds_up(make_toy):
    network = make_toy(0)
    freeze(network, parameters_of(network, {"encoder.0"}) | {"encoder.1.0.weight"})
    rates = {stage.name: (1e-4, 1e-3, 0.0) for stage in network.stages()}
    head, *lines = stage_table(network, rates, {"head"}, 0.01).splitlines()
    assert head.split()[:8] == ["layers", "part", "tensors", "parameters", "moves", "rate", "at", "start"]
    assert head.split()[8:] == ["peak", "end", "weight", "decay"]
    assert lines[0].split()[4:] == ["no", "-", "-", "-", "-"]
    assert lines[1].split()[4:7] == ["24", "of", "them"]
    assert lines[4].split() == ["head", "head", "2", "15", "yes,", "fresh", "1.00e-04", "1.00e-03", "0.00e+00", "0.01"]
    assert sum(int(line.split()[3].replace(",", "")) for line in lines) == sum(p.numel() for p in network.parameters())
    assert sum(int(line.split()[2]) for line in lines) == len(network.state_dict())
