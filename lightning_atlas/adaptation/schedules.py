"""How the learning rate runs over a whole run, in closed form: nothing to save, nothing to resume."""

import math
from dataclasses import dataclass


class Schedule:
    """A multiplier of the learning rate as a function of the step and the length of the run."""

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the share of the peak at `step`, which counts optimizer steps from 0."""
        raise NotImplementedError


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """Hold the peak.

    Args:
        warmup: Share of the run over which the rate first climbs to its peak in equal steps.
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_share("warmup", self.warmup)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the climb, then 1."""
        return _climb(step, total_steps, self.warmup)


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Fall from the peak along half a cosine (Loshchilov & Hutter 2017, SGDR, without restarts).

    Args:
        warmup: Share of the run over which the rate first climbs to its peak in equal steps.
        final: Share of the peak that is reached when the run is over.
    """

    warmup: float = 0.05
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_share("warmup", self.warmup)
        _check_share("final", self.final)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the climb, then final + (1 - final) * (1 + cos(pi * progress)) / 2."""
        cosine = (1.0 + math.cos(math.pi * _progress(step, total_steps, self.warmup))) / 2.0
        return _climb(step, total_steps, self.warmup) * (self.final + (1.0 - self.final) * cosine)


@dataclass(frozen=True)
class PolynomialSchedule(Schedule):
    """Fall from the peak to 0 as a power of the share of the run that is left (0.9 as in Chen et al. 2018, DeepLab).

    Args:
        power: 1 is a straight line; smaller stays high for longer.
        warmup: Share of the run over which the rate first climbs to its peak in equal steps.
    """

    power: float = 0.9
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_share("warmup", self.warmup)
        if not self.power > 0:
            raise ValueError(f"power is {self.power}; it must be above 0")

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the climb, then (1 - progress) ** power."""
        left = 1.0 - _progress(step, total_steps, self.warmup)
        return _climb(step, total_steps, self.warmup) * left**self.power


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """Hold the peak, and multiply it by a factor at some points of the run.

    Args:
        at: Shares of the run, each later than the one before: `[0.5, 0.75]` is half way and after three quarters.
        factor: What the rate is multiplied by at each.
        warmup: Share of the run over which the rate first climbs to its peak in equal steps.
    """

    at: tuple[float, ...]
    factor: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_share("warmup", self.warmup)
        for share in self.at:
            _check_share("at", share)
        if list(self.at) != sorted(set(self.at)) or not 0 < self.factor <= 1:
            raise ValueError(f"at is {self.at} and factor {self.factor}; shares rise, and a factor is above 0, up to 1")

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the climb, then factor ** (points that are over)."""
        over = sum(step >= round(share * total_steps) for share in self.at)
        return _climb(step, total_steps, self.warmup) * self.factor**over


def _warmup_steps(total_steps: int, warmup: float) -> int:
    return round(warmup * total_steps)


def _climb(step: int, total_steps: int, warmup: float) -> float:
    """Return (step + 1) / (steps of warm-up + 1), at most 1: above 0 at once, 1 at the first step after the warm-up."""
    return min(1.0, (step + 1) / (_warmup_steps(total_steps, warmup) + 1))


def _progress(step: int, total_steps: int, warmup: float) -> float:
    """Return the share of the steps after the warm-up that is over: 1 when all `total_steps` are done."""
    start = _warmup_steps(total_steps, warmup)
    return min(1.0, max(0, step - start) / max(1, total_steps - start))


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}; it is a share of the whole, from 0 to 1")
