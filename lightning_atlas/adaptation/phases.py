"""What moves when: phases of a run, each in closed form over (step, total steps)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_atlas.adaptation.base import Adaptation
from lightning_atlas.adaptation.catalogue import LastStages
from lightning_atlas.networks.base import Stage


class Phased(Adaptation):
    """Gives each stage a rate that depends on the phase of the run."""

    def rate(self, early: bool, step: int, total_steps: int) -> float:
        """Return the multiplier.

        Args:
            early: The stage moves from the first step: it is near the output, or no checkpoint gave it.
            step: From 0.
            total_steps: Of the whole run.
        """
        raise NotImplementedError

    def is_early(self, stage: Stage) -> bool:
        """Return whether a stage moves from the first step though weights gave it."""
        return stage.part != "encoder"

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return the rate of the phase for each stage."""
        early = [self.is_early(stage) or stage.name in fresh for stage in stages]
        return [self.rate(each, step, total_steps) for each in early]


@dataclass(frozen=True)
class WarmUp(Adaptation):
    """Climb to the full rate in equal steps, all stages alike.

    Source: the warm-up of nnU-Net's fine-tuning trainers and of Wald et al. 2025 (OpenMind): 50 of 1000 epochs with a
    peak of 1e-3 for convolutional networks, 1e-4 for transformers; polynomial decay after it.

    Args:
        share: Share of the run over which the rate climbs.
    """

    share: float = 0.05

    def __post_init__(self) -> None:
        _check(self, share=self.share)

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return (step + 1) / steps of the climb, at most 1."""
        return [_climb(step, _steps(self.share, total_steps)) for _ in stages]


@dataclass(frozen=True)
class HeadsFirst(Phased):
    """Move the head and what no checkpoint gave, and then everything.

    Source: MultiTalent (Ulrich et al. 2023): heads alone for 10 of about 1060 epochs, there with an
    optimizer of their own.
    Differs: a tenth by default, since the runs here are shorter: 10 epochs of nnU-Net are 2,500 steps, a tenth of a run
    of 25,000; the published share would leave the head 236 of them, and 8 of a run of 900.

    Args:
        share: Share of the run in which all else rests.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        _check_rest(self, share=self.share)

    def is_early(self, stage: Stage) -> bool:
        """Return whether it is the head."""
        return stage.part == "head"

    def rate(self, early: bool, step: int, total_steps: int) -> float:
        """Return 1, and 0 for the body in the first phase."""
        return float(early or step >= resting_steps(self.share, total_steps))


@dataclass(frozen=True)
class LastStagesFirst(HeadsFirst):
    """Move the stages next to the output and what no checkpoint gave, and then everything.

    Source: Humpire-Mamani et al. 2023; their code fine-tunes the last convolution and the head, and advises to train
    everything after it. There each is a run of its own, with a new optimizer.

    Args:
        share: Share of the run in which all other stages rest.
        count: How many stages move first, counted from the output.
    """

    share: float = 0.5
    count: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        LastStages(self.count)  # refuses what is no count

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return 1, and 0 for the other stages in the first phase."""
        last = LastStages(self.count).moving(stages, fresh)
        early = [moves or stage.name in fresh for moves, stage in zip(last, stages, strict=True)]
        return [self.rate(each, step, total_steps) for each in early]


@dataclass(frozen=True)
class LPFT(HeadsFirst):
    """Move the head until it fits what the weights know, then everything at a lower rate: a probe, then fine-tuning.

    Source: Kumar et al. 2022, *Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution*.
    The paper runs the two one after another and sweeps both rates.

    Args:
        share: Share of the run in which all but the head rests.
        rate_after: The rate of everything after it.
    """

    share: float = 0.5
    rate_after: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rate_after > 0:
            raise ValueError(f"rate_after of LPFT is {self.rate_after}; it must be above 0")

    def rate(self, early: bool, step: int, total_steps: int) -> float:
        """Return 1 or 0 in the first phase, the rate after it in the second."""
        return float(early) if step < resting_steps(self.share, total_steps) else self.rate_after


@dataclass(frozen=True)
class GradualThaw(Adaptation):
    """Let stages begin to move one after another, from the output to the input.

    The head, and stages that no checkpoint gave, move alone at first; after that, the others begin at equal distances.

    Source: gradual unfreezing in ULMFiT (Howard & Ruder 2018), one layer group an epoch, the new classifier alone in
    the first.

    Args:
        share: Share of the run after which all stages move.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        _check_rest(self, share=self.share)

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return 1 from the step on at which a stage's turn has come."""
        later = [stage.name for stage in stages if stage.part != "head" and stage.name not in fresh]
        starts = {
            name: resting_steps(self.share * turn / len(later), total_steps)
            for turn, name in enumerate(reversed(later), start=1)
        }
        return [float(step >= starts.get(stage.name, 0)) for stage in stages]


@dataclass(frozen=True)
class Valley(Phased):
    """Move the decoder at a falling rate, then climb with everything, then fall to the end of the run.

    It is the whole course of the rate: give the module no schedule.

    Source: Wald et al. 2025 (OpenMind).

    Args:
        decoder: Share of the run for decoder and head alone.
        climb: Share of the run for the climb of everything.
        power: Of the polynomial that the rate falls along.
    """

    decoder: float = 0.05
    climb: float = 0.05
    power: float = 0.9
    whole_course: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_rest(self, decoder=self.decoder)
        _check(self, climb=self.climb, both=self.decoder + self.climb)

    def rate(self, early: bool, step: int, total_steps: int) -> float:
        """Return the polynomial, the climb, and the polynomial again."""
        alone, climb = resting_steps(self.decoder, total_steps), _steps(self.climb, total_steps)
        if step < alone:
            return early * self.first(step, alone)
        step -= alone
        return _climb(step, climb) if step < climb else _fall(step - climb, total_steps - alone - climb, self.power)

    def first(self, step: int, length: int) -> float:
        """Return the decoder's rate while it moves alone."""
        return _fall(step, length, self.power)


@dataclass(frozen=True)
class Sawtooth(Valley):
    """Climb and fall with the decoder alone, then climb and fall with everything.

    It is the whole course of the rate: give the module no schedule.

    Source: Wald et al. 2025 (OpenMind), the best of its schedules for convolutional networks: 50 epochs for the decoder
    and 50 for the climb, of 1000, at a peak of 1e-3.

    Args:
        decoder: Share of the run for decoder and head alone: half of it to climb, half to fall.
        climb: Share of the run for the climb of everything.
        power: Of the polynomial that the rate falls along.
    """

    def first(self, step: int, length: int) -> float:
        """Return the decoder's rate while it moves alone."""
        half = length // 2
        return _climb(step, half) if step < half else _fall(step - half, length - half, self.power)


def resting_steps(share: float, total_steps: int) -> int:
    """Return the steps of a share of the run in which something rests: never all, so that it moves after them."""
    return min(_steps(share, total_steps), max(0, total_steps - 1))


def _steps(share: float, total_steps: int) -> int:
    return round(share * total_steps)


def _climb(step: int, length: int) -> float:
    return min(1.0, (step + 1) / length) if length else 1.0


def _fall(step: int, length: int, power: float) -> float:
    return max(0.0, 1.0 - step / length) ** power if length > 0 else 0.0


def _check(adaptation: Adaptation, **shares: float) -> None:
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name} of {type(adaptation).__name__} is {share}; it is a share of the run, from 0 to 1")


def _check_rest(adaptation: Adaptation, **shares: float) -> None:
    _check(adaptation, **shares)
    for name, share in shares.items():
        if share == 1:
            raise ValueError(
                f"{name} of {type(adaptation).__name__} is {share}, and what rests for the whole run would never move: "
                "take less than 1, or what holds stages, such as HeadOnly or LastStages"
            )
