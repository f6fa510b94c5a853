from functools import partial

import pytest
from torch.optim import SGD
from torch.optim.lr_scheduler import CyclicLR, ExponentialLR

from lightning_atlas.adaptation import (
    AdaptationPlan,
    ConstantSchedule,
    CosineSchedule,
    FrozenEncoder,
    HeadsFirst,
    LayerWiseDecay,
    Sawtooth,
)


def test_the_course_is_what_a_run_would_do_and_follows_another_optimizer(make_toy):
    plan = AdaptationPlan([HeadsFirst(0.5), LayerWiseDecay(0.5)], make_toy(0), {"head"}, 4)
    plan.freeze()
    for rate in (1.0, 2.0):
        steps, course = plan.course(partial(SGD, lr=rate), partial(ExponentialLR, gamma=0.1))
        assert steps == [0, 1, 2, 3]
        assert course["head"] == pytest.approx([rate, 0.1 * rate, 0.01 * rate, 0.001 * rate])
        assert course["decoder.0"] == pytest.approx([0, 0, 0.005 * rate, 0.0005 * rate])


def test_the_table_says_what_stands_still_again_after_another_decision(make_toy):
    network = make_toy(0)
    plan = AdaptationPlan([FrozenEncoder()], network, set(), 4)
    plan.freeze()
    choices = partial(SGD, lr=1.0), ConstantSchedule()
    frozen = plan.table(*choices)
    plan.thaw()
    assert all(parameter.requires_grad for parameter in network.parameters())
    moving = AdaptationPlan([], network, set(), 4).table(*choices)
    told = [[line.split()[4] for line in table.splitlines()[1:]] for table in (frozen, moving)]
    assert told == [["no", "no", "yes", "yes", "yes"], ["yes"] * 5]


CYCLES = partial(CyclicLR, base_lr=0.001, max_lr=1.0, step_size_up=5, cycle_momentum=False)


@pytest.mark.parametrize(("schedule", "peak"), [(CYCLES, 5), (CosineSchedule(warmup=105 / 2001), 105)])
def test_a_peak_between_the_steps_that_are_told_is_told_too(schedule, peak, make_toy):
    plan = AdaptationPlan([LayerWiseDecay(0.5)], make_toy(0), {"head"}, 2001)
    steps, course = plan.course(partial(SGD, lr=1.0), schedule)
    assert {0, peak, 2000} <= set(steps)
    assert len(steps) < 210
    assert max(course["head"]) == course["head"][steps.index(peak)] == pytest.approx(1.0)
    assert max(course["encoder.0"]) == pytest.approx(0.125)


def cautions(make_toy, *adaptations, schedule=None):
    plan = AdaptationPlan(adaptations, make_toy(0), {"head"}, 100)
    plan.freeze()
    table = plan.table(partial(SGD, lr=1.0), schedule or ConstantSchedule())
    return [line.removeprefix("caution: ") for line in table.splitlines() if line.startswith("caution: ")]


def test_a_stage_that_hardly_moves_by_several_adaptations_together_is_warned_of(make_toy):
    decay, encoder = LayerWiseDecay(0.3), LayerWiseDecay(0.1, over="encoder")
    assert not cautions(make_toy, decay)
    assert not cautions(make_toy, encoder, HeadsFirst(0.5))
    (told,) = cautions(make_toy, decay, encoder, HeadsFirst(0.5))
    assert told == "the adaptations together leave encoder.0 2.7e-03 of the rate at most: it hardly moves"
    assert not cautions(make_toy, decay, encoder, FrozenEncoder())
    (alone,) = cautions(make_toy, LayerWiseDecay(0.1), HeadsFirst(0.5))
    assert alone.startswith("LayerWiseDecay leaves the first stage")


def test_a_schedule_beside_the_whole_course_of_the_rate_is_warned_of(make_toy):
    for schedule in (CosineSchedule(), partial(ExponentialLR, gamma=0.9)):
        (told,) = cautions(make_toy, Sawtooth(), schedule=schedule)
        assert told.endswith("a schedule multiplies it: set model.init_args.schedule: null")
    assert not cautions(make_toy, Sawtooth())
    assert not cautions(make_toy, HeadsFirst(), schedule=CosineSchedule())
