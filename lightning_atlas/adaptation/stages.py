"""What moves, and how fast: freezing and learning rates, stage by stage."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn

from lightning_atlas.networks.base import Network, Stage, stage_parameters, stage_tensors


class Adaptation:
    """A multiplier of the learning rate for each stage; several act together as their product."""

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return a factor for each stage, in their order.

        Args:
            stages: In forward order.
            fresh: Names of the stages that hold parameters which no checkpoint gave.
            step: Optimizer step, from 0.
            total_steps: Optimizer steps of the whole run.
        """
        raise NotImplementedError

    def always_zero(self, stages: Sequence[Stage], fresh: Collection[str], total_steps: int) -> set[str]:
        """Return the names of the stages whose multiplier is 0 at every step."""
        return set()


@dataclass(frozen=True)
class FullFineTuning(Adaptation):
    """Move everything at the full rate."""

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return 1 for each stage."""
        return [1.0 for _ in stages]


class _Frozen(Adaptation):
    """Hold some stages for the whole run."""

    def _holds(self, stage: Stage) -> bool:
        raise NotImplementedError

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return 0 for the stages that are held, 1 for the others."""
        return [0.0 if self._holds(stage) else 1.0 for stage in stages]

    def always_zero(self, stages: Sequence[Stage], fresh: Collection[str], total_steps: int) -> set[str]:
        """Return the stages that are held."""
        return {stage.name for stage in stages if self._holds(stage)}


@dataclass(frozen=True)
class HeadOnly(_Frozen):
    """Move the head and hold all else: a linear probe of what the weights know."""

    def _holds(self, stage: Stage) -> bool:
        return stage.part != "head"


@dataclass(frozen=True)
class FrozenEncoder(_Frozen):
    """Hold the encoder; decoder and head move at the full rate."""

    def _holds(self, stage: Stage) -> bool:
        return stage.part == "encoder"


@dataclass(frozen=True)
class LayerWiseDecay(Adaptation):
    """Let stages learn the slower, the nearer they are to the input.

    The last stage has the full rate, each one before it `decay` times that of the next. A stage that holds fresh
    parameters has the full rate too and does not count as a step down, so weights of an encoder alone leave the decoder
    at the full rate.

    Source: discriminative fine-tuning in ULMFiT (Howard & Ruder 2018), where each rate is the next one divided by 2.6;
    as a factor for each block in BEiT (Bao et al. 2022).

    Args:
        decay: Factor per stage, above 0 and at most 1.
    """

    decay: float = 0.75

    def __post_init__(self) -> None:
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"the decay of LayerWiseDecay is {self.decay}; it must be above 0 and at most 1")

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return `decay` to the number of stages between a stage and the output that are not fresh."""
        known = [stage.name for stage in stages if stage.name not in fresh]
        depth = {name: below for below, name in enumerate(reversed(known))}
        return [self.decay ** depth.get(stage.name, 0) for stage in stages]


def combined(
    adaptations: Iterable[Adaptation], stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int
) -> dict[str, float]:
    """Return the product of all multipliers by stage; 1 where there is no adaptation."""
    result = {stage.name: 1.0 for stage in stages}
    for adaptation in adaptations:
        factors = adaptation.multipliers(stages, fresh, step, total_steps)
        for stage, factor in zip(stages, factors, strict=True):
            result[stage.name] *= factor
    return result


def frozen_stages(
    adaptations: Iterable[Adaptation], stages: Sequence[Stage], fresh: Collection[str], total_steps: int
) -> set[str]:
    """Return the stages that do not move in the whole run, as the adaptations themselves declare."""
    return set().union(*(each.always_zero(stages, fresh, total_steps) for each in adaptations))


def fresh_stages(network: Network, names: Collection[str]) -> set[str]:
    """Return the stages that hold a parameter among `names`; a fresh counter or statistic does not make one fresh."""
    return {stage.name for stage in network.stages() if not stage_parameters(network, stage).keys().isdisjoint(names)}


def freeze(network: Network, frozen: Collection[str]) -> None:
    """Let the parameters of these stages take no gradient.

    Raises:
        ValueError: No such stage, or nothing would be left to train.
    """
    stages = network.stages()
    names = [stage.name for stage in stages]
    if unknown := sorted(set(frozen).difference(names)):
        raise ValueError(f"no stage is called {', '.join(unknown)}; there are {', '.join(names)}")
    for stage in stages:
        if stage.name in frozen:
            for parameter in stage_parameters(network, stage).values():
                parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"nothing is left to train: the adaptation holds {', '.join(sorted(frozen))}")


def set_modes(network: Network, frozen: Collection[str]) -> None:
    """Put these stages in evaluation mode: running statistics stand still and nothing is dropped out."""
    for stage in network.stages():
        if stage.name in frozen:
            for name in stage.modules:
                member = attrgetter(name)(network)
                if isinstance(member, nn.Module):  # a stage may hold a bare parameter too
                    member.eval()


def parameter_groups(network: Network, frozen: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return one group for each stage that moves, `{"params": [...], "name": stage}`, in forward order.

    Each parameter that takes a gradient is in exactly one group, found by identity, in the order of its registration;
    one that several stages share belongs to the first of them.

    Args:
        network: As it is when the optimizer is made: sharding replaces parameters.
        frozen: Stages that do not move.

    Raises:
        ValueError: Nothing moves, or a parameter that takes a gradient is in no stage.
    """
    owner: dict[int, str] = {}
    groups: dict[str, list[nn.Parameter]] = {stage.name: [] for stage in network.stages()}
    for stage in network.stages():
        for parameter in stage_parameters(network, stage).values():
            owner.setdefault(id(parameter), stage.name)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in owner:
            raise ValueError(f"{name} takes a gradient and is in no stage of {type(network).__name__}")
        groups[owner[id(parameter)]].append(parameter)
    moving = [{"params": group, "name": name} for name, group in groups.items() if group and name not in frozen]
    if not moving:
        raise ValueError(f"nothing is left to train: held are {', '.join(sorted(frozen)) or 'all parameters'}")
    return moving


def stage_table(
    network: Network, frozen: Collection[str], rates: Mapping[str, Sequence[float]], fresh: Collection[str] = ()
) -> str:
    """Return a table of the stages for print.

    Args:
        network: Its stages are the lines.
        frozen: Stages that do not move.
        rates: Learning rate of each stage at the start, at the peak and at the end.
        fresh: Stages that hold parameters which no checkpoint gave.
    """
    lines = [["layers", "part", "tensors", "parameters", "moves", "rate at start", "peak", "end"]]
    for stage in network.stages():
        parameters = sum(parameter.numel() for parameter in stage_parameters(network, stage).values())
        moves = ("no" if stage.name in frozen else "yes") + (", fresh" if stage.name in fresh else "")
        shown = ["-"] * 3 if stage.name in frozen else [f"{rate:.2e}" for rate in rates[stage.name]]
        tensors = str(len(stage_tensors(network, stage)))
        lines.append([stage.name, stage.part, tensors, f"{parameters:,}", moves, *shown])
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    numeric = {2, 3, 5, 6, 7}
    padded = (c.rjust(w) if i in numeric else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
    return "  ".join(padded).rstrip()
