import copy
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lightning_atlas.adaptation import (
    LPFT,
    Adaptation,
    AdaptationPlan,
    BiasOnly,
    FrozenEncoder,
    FullFineTuning,
    GradualThaw,
    HeadMultiplier,
    HeadOnly,
    HeadsFirst,
    LastStages,
    LastStagesFirst,
    LayerWiseDecay,
    NormOnly,
    Sawtooth,
    SurgicalBlock,
    Valley,
    WarmUp,
)
from lightning_atlas.adaptation.base import combined
from lightning_atlas.networks import SwinUNETR, UNet, ValidUNet, as_network
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
        (LayerWiseDecay(0.5, over="encoder"), {"e"}, [1 / 2, 1, 1, 1, 1]),
        (LastStages(2), {"a"}, [0, 0, 0, 1, 1]),
        (SurgicalBlock("b", "c"), set(), [0, 1, 1, 0, 1]),
        (SurgicalBlock("a"), {"d", "e"}, [1, 0, 0, 1, 1]),
        (HeadMultiplier(), set(), [1, 1, 1, 1, 10]),
        (HeadMultiplier(5.0), {"b", "e"}, [1, 5, 1, 1, 5]),
        (HeadMultiplier(5.0), {"a", "b", "c", "d", "e"}, [1, 1, 1, 1, 5]),
        (NormOnly(), set(), [1, 1, 1, 1, 1]),
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


def test_what_one_adaptation_holds_all_the_time_is_frozen_and_what_waits_is_not(make_toy):
    class Later(Adaptation):
        def multipliers(self, stages, fresh, step, total_steps):
            return [float(step > 0) for _ in stages]

    def frozen(*adaptations):
        plan = AdaptationPlan(adaptations, make_toy(0), set(), 10)
        plan.freeze()
        return plan.frozen

    body = {"encoder.0", "encoder.1", "decoder.0", "decoder.1"}
    assert frozen(Later(), LayerWiseDecay()) == set()
    assert frozen(Later(), FrozenEncoder()) == {"encoder.0", "encoder.1"}
    assert frozen(FrozenEncoder(), HeadOnly()) == body
    assert frozen(LastStages(2)) == body - {"decoder.1"}
    assert frozen(SurgicalBlock("encoder.1")) == body - {"encoder.1"}


ALL = [FullFineTuning(), HeadOnly(), FrozenEncoder(), LayerWiseDecay(), LastStages(2), SurgicalBlock("encoder.1")]
PHASES = [WarmUp(), WarmUp(1.0), Valley(), Valley(0.97, 0.03), Sawtooth(), Sawtooth(0.97, 0.03), Sawtooth(0.0, 1.0)]
KINDS: list[Any] = [HeadsFirst, LastStagesFirst, LPFT, GradualThaw]
PHASES += [kind(*share) for kind in KINDS for share in ((), (0.97,), (0.0,))]


@pytest.mark.parametrize("adaptation", [*ALL, *PHASES], ids=str)
def test_frozen_is_exactly_where_no_step_has_a_rate(adaptation, make_toy):
    stages = make_toy(0).stages()
    for fresh in (set(), {"head"}, {"encoder.0", "head"}):
        for steps in (1, 2, 5, 10):
            rates = [combined([adaptation], stages, fresh, step, steps) for step in range(steps)]
            never = {stage.name for stage in stages if not any(rate[stage.name] for rate in rates)}
            assert adaptation.always_zero(stages, fresh, steps) == never


@pytest.mark.parametrize("adaptation", [HeadOnly(), FrozenEncoder(), LastStages(2)], ids=str)
def test_what_is_frozen_from_the_input_on_builds_no_graph(adaptation, make_toy):
    network = make_toy(1)
    plan = AdaptationPlan([adaptation], network, set(), 5)
    plan.freeze()
    network.train()
    plan.set_modes(0)
    graph = {}
    for stage in network.stages():
        module = network.get_submodule(stage.modules[0])
        module.register_forward_hook(lambda _, __, output, name=stage.name: graph.update({name: output.requires_grad}))
    network(torch.randn(2, 1, 4, 4, 4))
    assert graph == {stage.name: stage.name not in plan.frozen for stage in network.stages()}


def trained(network, adaptation, fresh=(), steps=3):
    """Train on noise; return what the tensors were before."""
    plan = AdaptationPlan([adaptation], network, fresh, steps)
    plan.freeze()
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(plan.parameter_groups(), lr=0.1, weight_decay=0.1)
    for step in range(steps):
        network.train()
        plan.set_modes(step)
        optimizer.zero_grad()
        network(torch.randn(2, 1, 4, 4, 4)).square().mean().backward()
        optimizer.step()
    return before


@pytest.mark.parametrize("adaptation", ALL, ids=str)
def test_frozen_stages_are_bit_identical_after_training_and_the_others_are_not(adaptation, make_toy):
    network = make_toy(1)
    before = trained(network, adaptation)
    for stage in network.stages():
        same = [torch.equal(before[name], tensor) for name, tensor in stage_tensors(network, stage).items()]
        frozen = stage.name in adaptation.always_zero(network.stages(), set(), 3)
        assert all(same) if frozen else not any(same)


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.MultiheadAttention(4, 2), nn.Linear(4, 2)


def test_biases_of_queries_keys_and_values_are_biases():
    network = as_network(Attentive(), encoder=["body"], decoder=[], head=["head"])
    moving = dict(network.named_parameters()).keys() - BiasOnly().holds(network, {"head"})
    assert moving == {"body.in_proj_bias", "body.out_proj.bias", "head.weight", "head.bias"}


def moved(network, before):
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


def test_norm_only_moves_norms_and_their_statistics_and_nothing_drops_out(make_toy):
    network = make_toy(1)
    before = trained(network, NormOnly())
    norms = {name for name in before if name.split(".")[2:3] == ["1"]}
    assert moved(network, before) == norms | {"head.weight", "head.bias"}
    assert any("running_mean" in name for name in norms)
    assert not network.encoder[0][2].training  # dropout
    assert network.encoder[0][1].training


def test_bias_only_moves_biases_and_the_head_but_no_statistics(make_toy):
    network = make_toy(1)
    before = trained(network, BiasOnly())
    assert moved(network, before) == {name for name in before if name.endswith("bias")} | {"head.weight"}


@pytest.mark.parametrize("adaptation", [NormOnly(), BiasOnly()], ids=str)
def test_what_no_weights_gave_moves_whole(adaptation, make_toy):
    network = make_toy(1)
    before = trained(network, adaptation, fresh={"decoder.0"})
    assert {name for name in before if name.startswith("decoder.0")} <= moved(network, before)
    assert network.decoder[0][2].training


class Plain(UNet):
    """A network without any layer that normalises."""

    def __init__(self):
        super().__init__(features=(4, 8))
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.InstanceNorm3d):
                self.set_submodule(name, nn.Identity())


@pytest.mark.parametrize(
    ("adaptation", "words"),
    [
        (NormOnly(), "NormOnly leaves nothing to train but the head: Plain has no such parameters"),
        (SurgicalBlock("encoder.7"), r"no stage is called encoder\.7: did you mean encoder\.[01]\? There are encoder"),
        (SurgicalBlock("decoder.0", "encoder.0"), r"encoder\.0 comes before decoder\.0"),
        (LastStages(9), "the count of LastStages is 9, and the network has 4 stages"),
    ],
)
def test_what_cannot_be_is_said(adaptation, words):
    with pytest.raises(ValueError, match=words):
        AdaptationPlan([adaptation], Plain(), set(), 5).freeze()


def test_a_decay_that_leaves_the_first_stage_at_rest_is_warned_of():
    (caution,) = LayerWiseDecay(0.2).cautions(STAGES, set())
    assert "leaves the first stage 1.6e-03 of the rate" in caution
    enough = float(caution.split()[-4])
    assert not LayerWiseDecay(enough + 0.01).cautions(STAGES, set())


@pytest.mark.parametrize(
    ("network", "over", "count", "lowest"),
    [
        (lambda: UNet(features=(16, 32, 64, 96)), "all", 8, 0.18),
        (lambda: SwinUNETR(feature_size=12), "all", 11, 0.075),
        (lambda: ValidUNet(features=(2, 3, 4, 5)), "all", 15, 0.024),
        (lambda: UNet(features=(16, 32, 64, 96)), "encoder", 4, 0.42),
        (lambda: SwinUNETR(feature_size=12), "encoder", 5, 0.32),
        (lambda: ValidUNet(features=(2, 3, 4, 5)), "encoder", 8, 0.13),
    ],
)
def test_what_the_recipes_say_a_published_decay_leaves_of_the_rate(network, over, count, lowest):
    stages = network().stages()
    assert len([stage for stage in stages if over in ("all", stage.part)]) == count
    found = min(LayerWiseDecay(0.75, over=over).multipliers(stages, {"head"}, 0, 1))
    assert found == pytest.approx(lowest, rel=0.03)


def test_a_stage_of_the_encoder_that_is_fresh_in_part_is_told():
    (caution,) = LayerWiseDecay(0.75).cautions(STAGES, {"a", "e"})
    assert caution == "LayerWiseDecay: a hold parameters that no weights gave, and have the full rate"
    assert not LayerWiseDecay(0.75).cautions(STAGES, {"a", "b", "e"})


def test_holding_what_is_fresh_is_warned_of():
    (caution,) = HeadOnly().cautions(STAGES, {"c", "e"})
    assert caution == "HeadOnly holds c, which no weights gave"
    assert not FrozenEncoder().cautions(STAGES, {"c", "e"})
