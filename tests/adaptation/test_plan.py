from functools import partial

import pytest
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR

from lightning_atlas.adaptation import AdaptationPlan, ConstantSchedule, FrozenEncoder, HeadsFirst, LayerWiseDecay


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
