import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, lr_scheduler
from torch.optim.swa_utils import SWALR

from lightning_atlas.adaptation.following import FollowingRates

STEPS = 12
SHARES = {"slow": 0.25, "fast": 1.0, "late": 0.0}


def linear(step: int) -> float:
    return 1.0 - step / 20


SCHEDULERS = {
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=linear),
    "MultiplicativeLR": partial(lr_scheduler.MultiplicativeLR, lr_lambda=lambda step: 0.9),
    "StepLR": partial(lr_scheduler.StepLR, step_size=3),
    "MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[2, 5]),
    "ConstantLR": partial(lr_scheduler.ConstantLR, total_iters=4),
    "LinearLR": partial(lr_scheduler.LinearLR, total_iters=4),
    "ExponentialLR": partial(lr_scheduler.ExponentialLR, gamma=0.9),
    "PolynomialLR": partial(lr_scheduler.PolynomialLR, total_iters=STEPS),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS),
    "CosineAnnealingWarmRestarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=4),
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=1e-3, max_lr=0.1, step_size_up=3),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=STEPS + 1),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, total_iters=3), lr_scheduler.CosineAnnealingLR(optimizer, 9)],
        milestones=[3],
    ),
    "ChainedScheduler": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer, total_iters=3), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
    "SWALR": partial(SWALR, swa_lr=0.02, anneal_epochs=5),
}


def test_no_scheduler_that_torch_ships_is_left_out():
    apart = {"LRScheduler", "ReduceLROnPlateau"}  # the base of all, and one that waits for a metric: see below
    assert {*lr_scheduler.__all__, "SWALR"} - apart == SCHEDULERS.keys()


def share(group, step):
    return SHARES[group["name"]] if group["name"] != "late" else float(step >= 5)


def groups():
    torch.manual_seed(0)
    return [{"params": [nn.Parameter(torch.randn(3))], "name": name} for name in SHARES]


MOMENTUM: Any = partial(SGD, lr=0.1, momentum=0.9)


def follow(make, kind=MOMENTUM):
    optimizer = kind(groups())
    return optimizer, FollowingRates(optimizer, kind, make, share)


def rates(optimizer):
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_the_ratio_holds_at_every_step_with_every_scheduler(make):
    plain = SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    alone = make(plain)
    optimizer, follower = follow(make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(STEPS):
            found = rates(optimizer)
            assert all(isinstance(each, float) for each in found.values())
            expected = plain.param_groups[0]["lr"]
            assert found == pytest.approx({"slow": expected * 0.25, "fast": expected, "late": expected * (step >= 5)})
            assert optimizer.param_groups[0]["momentum"] == plain.param_groups[0]["momentum"]
            plain.step()
            alone.step()
            optimizer.step()
            follower.step()


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_state_continues_the_course(make, tmp_path):
    optimizer, follower = follow(make)
    for _ in range(4):
        optimizer.step()
        follower.step()
    torch.save({"optimizer": optimizer.state_dict(), "follower": follower.state_dict()}, tmp_path / "state.pt")
    again, resumed = follow(make)
    kept = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(kept["optimizer"])
    resumed.load_state_dict(kept["follower"])
    for _ in range(6):
        assert rates(again) == rates(optimizer)
        assert resumed.left_rest == follower.left_rest
        for each in (optimizer, follower, again, resumed):
            each.step()


def test_leaving_rest_is_told_at_its_step_and_at_no_other():
    optimizer, follower = follow(SCHEDULERS["ExponentialLR"], partial(AdamW, lr=0.1))
    told = []
    for step in range(STEPS):
        told += [
            (step, group["name"])
            for group, left in zip(optimizer.param_groups, follower.left_rest, strict=True)
            if left
        ]
        optimizer.step()
        follower.step()
    assert told == [(5, "late")]


def test_a_schedule_may_wait_for_a_metric():
    class Watching(lr_scheduler.ReduceLROnPlateau):
        monitor = "val/dice"

    optimizer, follower = follow(partial(Watching, mode="max", factor=0.5, patience=0))
    for metric in (0.5, 0.4):
        optimizer.step()
        follower.step()
        assert rates(optimizer)["fast"] == 0.1
        follower.see({"val/dice": torch.tensor(metric)})
    optimizer.step()
    follower.step()
    assert rates(optimizer) == pytest.approx({"slow": 0.0125, "fast": 0.05, "late": 0.0})
    with pytest.raises(ValueError, match="waits for val/dice, and there are val/loss"):
        follower.see({"val/loss": 1.0})
