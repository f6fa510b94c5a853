import math
from itertools import pairwise

import pytest

from lightning_atlas.adaptation.schedules import ConstantSchedule, CosineSchedule, PolynomialSchedule, StepSchedule

SCHEDULES = [
    ConstantSchedule(),
    ConstantSchedule(warmup=0.1),
    CosineSchedule(),
    CosineSchedule(warmup=0.3, final=0.2),
    PolynomialSchedule(),
    PolynomialSchedule(power=2.0, warmup=0.5),
    StepSchedule((0.6, 0.9)),
    StepSchedule((0.5,), factor=0.5, warmup=0.2),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_every_step_trains_at_a_share_of_the_peak(schedule, total):
    shares = [schedule(step, total) for step in range(total)]
    assert all(0.0 < share <= 1.0 for share in shares)
    assert max(shares) == 1.0 or total < 3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_climbs_then_never_rises_again(schedule):
    warm = round(schedule.warmup * 100)
    shares = [schedule(step, 100) for step in range(101)]
    assert all(a < b for a, b in pairwise(shares[: warm + 1]))
    assert shares[warm] == 1.0
    assert all(a >= b for a, b in pairwise(shares[warm:]))


def test_cosine_by_hand():
    schedule = CosineSchedule(warmup=0.2, final=0.1)
    assert schedule(0, 10) == pytest.approx(1 / 3)
    assert schedule(1, 10) == pytest.approx(2 / 3)
    assert schedule(2, 10) == 1.0
    assert schedule(6, 10) == pytest.approx(0.55)  # half-way down
    assert schedule(4, 10) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule(10, 10) == pytest.approx(0.1)
    assert schedule(1000, 10) == pytest.approx(0.1)


def test_polynomial_of_power_one_is_a_straight_line():
    assert [PolynomialSchedule(power=1.0)(step, 4) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: CosineSchedule(warmup=5.0), "warmup is 5"),
        (lambda: CosineSchedule(final=-0.1), "final is -0.1"),
        (lambda: ConstantSchedule(warmup=math.nan), "warmup is nan"),
        (lambda: PolynomialSchedule(power=0.0), "power is 0"),
    ],
)
def test_a_value_outside_its_range_is_named(build, told):
    with pytest.raises(ValueError, match=told):
        build()


def test_the_published_pre_training_schedule():
    """SuPreM's learning rates as logged, 1e-3 over 800 epochs of which 20 warm up; theirs change once an epoch."""
    schedule, steps = CosineSchedule(warmup=20 / 800), 144
    rates = {epoch: 1e-3 * schedule(round((epoch + 0.5) * steps), 800 * steps) for epoch in (20, 400, 799)}
    assert rates[20] == pytest.approx(1e-3, rel=1e-4)
    assert rates[400] == pytest.approx(5.18121e-4, rel=1e-2)
    assert rates[799] < 1e-8


def test_steps_are_where_they_are_asked_for():
    schedule = StepSchedule((0.5, 0.75))
    assert [round(schedule(step, 8), 6) for step in range(8)] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    with pytest.raises(ValueError, match="shares rise"):
        StepSchedule((0.75, 0.5))
