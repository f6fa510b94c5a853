import copy

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lightning_atlas.adaptation.stages import (
    Adaptation,
    FrozenEncoder,
    FullFineTuning,
    HeadOnly,
    LayerWiseDecay,
    combined,
    freeze,
    fresh_stages,
    frozen_stages,
    parameter_groups,
    set_modes,
    stage_table,
)
from lightning_atlas.networks import SegResNet, UNet
from lightning_atlas.networks.base import Stage, stage_tensors

STAGES = [
    Stage("a", "encoder", ()),
    Stage("b", "encoder", ()),
    Stage("c", "decoder", ()),
    Stage("d", "decoder", ()),
    Stage("e", "head", ()),
]


@pytest.mark.parametrize(
    ("adaptation", "fresh", "expected"),
    [
        (FullFineTuning(), set(), [1, 1, 1, 1, 1]),
        (HeadOnly(), set(), [0, 0, 0, 0, 1]),
        (FrozenEncoder(), set(), [0, 0, 1, 1, 1]),
        (LayerWiseDecay(0.5), set(), [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]),
        (LayerWiseDecay(0.5), {"e"}, [1 / 8, 1 / 4, 1 / 2, 1, 1]),
        (LayerWiseDecay(0.5), {"b"}, [1 / 8, 1, 1 / 4, 1 / 2, 1]),
        (LayerWiseDecay(0.5), {"c", "d", "e"}, [1 / 2, 1, 1, 1, 1]),
        (LayerWiseDecay(0.5), {"a", "b", "c", "d", "e"}, [1, 1, 1, 1, 1]),
    ],
    ids=str,
)
def test_multipliers_by_hand(adaptation, fresh, expected):
    for step in (0, 99):
        assert adaptation.multipliers(STAGES, fresh, step, 100) == expected


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.01, float("nan")])
def test_a_decay_outside_its_range_is_named(decay):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        LayerWiseDecay(decay)


def test_a_recipe_names_them_in_a_list():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--adaptation", type=list[Adaptation])
    prefix = "lightning_atlas.adaptation"
    text = f"[{{class_path: {prefix}.FrozenEncoder}}, {{class_path: {prefix}.LayerWiseDecay, init_args: {{decay: 1}}}}]"
    parsed = parser.instantiate(parser.parse_args(["--adaptation", text]))
    assert parsed.adaptation == [FrozenEncoder(), LayerWiseDecay(1.0)]


def test_adaptations_act_together_as_a_product():
    product = combined([LayerWiseDecay(0.5), LayerWiseDecay(0.1), FrozenEncoder()], STAGES, set(), 0, 10)
    assert product == pytest.approx({"a": 0, "b": 0, "c": 0.05**2, "d": 0.05, "e": 1})
    assert combined([], STAGES, set(), 0, 10) == dict.fromkeys("abcde", 1.0)


def test_what_one_adaptation_holds_all_the_time_is_frozen_and_what_waits_is_not():
    class Later(Adaptation):
        def multipliers(self, stages, fresh, step, total_steps):
            return [float(step > 0) for _ in stages]

    assert frozen_stages([Later(), LayerWiseDecay()], STAGES, set(), 10) == set()
    assert frozen_stages([Later(), FrozenEncoder()], STAGES, set(), 10) == {"a", "b"}
    assert frozen_stages([FrozenEncoder(), HeadOnly()], STAGES, set(), 10) == {"a", "b", "c", "d"}


@pytest.mark.parametrize("adaptation", [FullFineTuning(), HeadOnly(), FrozenEncoder(), LayerWiseDecay()], ids=str)
def test_frozen_is_exactly_where_no_step_has_a_rate(adaptation):
    rates = [combined([adaptation], STAGES, set(), step, 5) for step in range(5)]
    never = {stage.name for stage in STAGES if not any(rate[stage.name] for rate in rates)}
    assert frozen_stages([adaptation], STAGES, set(), 5) == never


def test_a_stage_is_fresh_by_its_parameters_not_by_its_counters(make_toy):
    network = make_toy(0)
    assert fresh_stages(network, {"encoder.0.1.num_batches_tracked", "encoder.1.1.running_mean"}) == set()
    assert fresh_stages(network, {"encoder.1.1.bias", "head.bias"}) == {"encoder.1", "head"}


@pytest.mark.parametrize("frozen", [[], ["encoder.0", "decoder.1"]])
@pytest.mark.parametrize("build", [UNet, SegResNet])
def test_each_trainable_parameter_is_in_exactly_one_group(build, frozen):
    network = build()
    frozen = frozen and [stage.name for stage in network.stages() if stage.part == "encoder"]
    freeze(network, frozen)
    grouped = [id(each) for group in parameter_groups(network, frozen) for each in group["params"]]
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


def test_nothing_to_train_and_unknown_stages_are_refused(make_toy):
    network = make_toy(0)
    with pytest.raises(ValueError, match=r"no stage is called encoder\.7; there are encoder\.0"):
        freeze(network, {"encoder.7"})
    with pytest.raises(ValueError, match="nothing is left to train"):
        freeze(network, {stage.name for stage in network.stages()})
    with pytest.raises(ValueError, match="nothing is left to train"):
        parameter_groups(network, {stage.name for stage in network.stages()})


@pytest.mark.parametrize("adaptation", [HeadOnly(), FrozenEncoder()], ids=str)
def test_frozen_stages_are_bit_identical_after_training_and_the_others_are_not(adaptation, make_toy):
    network = make_toy(1)
    stages = network.stages()
    frozen = frozen_stages([adaptation], stages, set(), 3)
    freeze(network, frozen)
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(parameter_groups(network, frozen), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        network.train()
        set_modes(network, frozen)
        optimizer.zero_grad()
        network(torch.randn(2, 1, 4, 4, 4)).square().mean().backward()
        optimizer.step()
    for stage in stages:
        same = [torch.equal(before[name], tensor) for name, tensor in stage_tensors(network, stage).items()]
        assert all(same) if stage.name in frozen else not any(same)


def test_a_frozen_stage_drops_nothing_and_the_others_do(make_toy):
    network = make_toy(1).train()
    set_modes(network, {"encoder.0"})
    image = torch.randn(1, 1, 4, 4, 4)
    assert torch.equal(network.encoder[0](image), network.encoder[0](image))
    features = network.encoder[0](image)
    assert not torch.equal(network.encoder[1](features), network.encoder[1](features))


def test_a_bare_parameter_may_be_a_stage(make_toy):
    network = make_toy(0)
    network.position = nn.Parameter(torch.ones(3))
    listed = [*network.stages(), Stage("position", "encoder", ("position",))]
    network.stages = lambda: listed
    set_modes(network, {"position"})
    freeze(network, {"position"})
    assert not network.position.requires_grad
    assert "position" not in [group["name"] for group in parameter_groups(network)]


def test_the_table_has_a_line_for_each_stage_and_adds_up(make_toy):
    network = make_toy(0)
    rates = {stage.name: (1e-4, 1e-3, 0.0) for stage in network.stages()}
    head, *lines = stage_table(network, {"encoder.0"}, rates, {"head"}).splitlines()
    assert head.split() == ["layers", "part", "tensors", "parameters", "moves", *["rate", "at", "start"], "peak", "end"]
    assert lines[0].split()[4:] == ["no", "-", "-", "-"]
    assert lines[4].split() == ["head", "head", "2", "15", "yes,", "fresh", "1.00e-04", "1.00e-03", "0.00e+00"]
    assert sum(int(line.split()[3].replace(",", "")) for line in lines) == sum(p.numel() for p in network.parameters())
    assert sum(int(line.split()[2]) for line in lines) == len(network.state_dict())
