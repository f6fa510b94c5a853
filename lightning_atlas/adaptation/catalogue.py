"""What moves in the whole run, and at which share of the rate: from everything to the head alone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from torch import nn

from lightning_atlas.adaptation.base import Adaptation
from lightning_atlas.networks.base import Network, Stage, stage_modules, stage_parameters
from lightning_atlas.networks.genesis_unet import BatchStatisticsNorm

NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
    BatchStatisticsNorm,
)
"""Layers that normalise: batch and instance norm, group norm, those of transformers, and our own."""
BIASES = ("bias", "in_proj_bias")
"""What layers call their biases; the second is `nn.MultiheadAttention`'s of queries, keys and values."""
LOWEST = 1e-2
"""A multiplier below this hardly lets a stage move."""


@dataclass(frozen=True)
class FullFineTuning(Adaptation):
    """Move everything at the full rate."""


class Holding(Adaptation):
    """Holds some stages for the whole run; a subclass says which move."""

    def moving(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[bool]:
        """Return for each stage whether it moves."""
        raise NotImplementedError

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return 1 for the stages that move, 0 for the others."""
        return [float(moves) for moves in self.moving(stages, fresh)]

    def always_zero(self, stages: Sequence[Stage], fresh: Collection[str], total_steps: int) -> set[str]:
        """Return the stages that do not move."""
        return {stage.name for stage, moves in zip(stages, self.moving(stages, fresh), strict=True) if not moves}

    def cautions(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[str]:
        """Name the stages that are held though no checkpoint gave them: they stay as they were drawn."""
        held = [name for name in fresh if name in self.always_zero(stages, fresh, 1)]
        return [f"{type(self).__name__} holds {', '.join(sorted(held))}, which no weights gave"] if held else []


@dataclass(frozen=True)
class HeadOnly(Holding):
    """Move the head and hold all else: a linear probe of what the weights know."""

    def moving(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[bool]:
        """Return whether a stage is of the head."""
        return [stage.part == "head" for stage in stages]


@dataclass(frozen=True)
class FrozenEncoder(Holding):
    """Hold the encoder; decoder and head move at the full rate."""

    def moving(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[bool]:
        """Return whether a stage is not of the encoder."""
        return [stage.part != "encoder" for stage in stages]


@dataclass(frozen=True)
class LastStages(Holding):
    """Move the stages next to the output and hold all else.

    Source: Humpire-Mamani et al. 2023 call it fine-tuning, with the last convolution of 3x3x3 and the head: two stages
    of `ValidUNet`. In other networks a stage is a whole level.

    Args:
        count: How many move, counted from the output.
    """

    count: int = 2

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"the count of LastStages is {self.count}; at least one stage moves")

    def moving(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[bool]:
        """Return whether a stage is among the last.

        Raises:
            ValueError: There are fewer stages.
        """
        if self.count > len(stages):
            raise ValueError(f"the count of LastStages is {self.count}, and the network has {len(stages)} stages")
        return [number >= len(stages) - self.count for number in range(len(stages))]


@dataclass(frozen=True)
class SurgicalBlock(Holding):
    """Move one block of neighbouring stages, the head, and stages that no checkpoint gave; hold all else.

    The published advice: the first block where images look different, a middle one where features mean something else,
    the last where labels do.

    Source: Lee et al. 2023, *Surgical Fine-Tuning Improves Adaptation to Distribution Shifts*.

    Args:
        first: Name of the block's first stage, as in the table that a fit prints.
        last: Name of its last stage; the first alone by default.
    """

    first: str
    last: str | None = None

    def moving(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[bool]:
        """Return whether a stage is in the block, of the head, or fresh.

        Raises:
            ValueError: There is no such stage, or the last stands before the first.
        """
        names = [stage.name for stage in stages]
        first, last = (_place(each, names) for each in (self.first, self.last or self.first))
        if last < first:
            raise ValueError(
                f"SurgicalBlock: {self.last} comes before {self.first}; from input to output: {', '.join(names)}"
            )
        return [
            first <= number <= last or stage.part == "head" or stage.name in fresh
            for number, stage in enumerate(stages)
        ]


def _place(name: str, names: Sequence[str]) -> int:
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"no stage is called {name}: {hint}There are {', '.join(names)}")
    return names.index(name)


def stage_norms(network: Network, stage: Stage) -> list[nn.Module]:
    """Return the layers of a stage that normalise."""
    return [module for module in stage_modules(network, stage) if isinstance(module, NORMS)]


def norm_parameters(network: Network, stage: Stage) -> set[str]:
    """Return the names of their parameters."""
    own = {id(parameter) for module in stage_norms(network, stage) for parameter in module.parameters()}
    return {name for name, parameter in stage_parameters(network, stage).items() if id(parameter) in own}


class _Selected(Adaptation):
    """Moves some tensors of the stages that weights gave, and all of the head and of fresh stages."""

    def _chosen(self, network: Network, stage: Stage) -> set[str]:
        raise NotImplementedError

    def holds(self, network: Network, fresh: Collection[str]) -> set[str]:
        """Return the names of all other parameters.

        Raises:
            ValueError: The network has no parameter of the kind.
        """
        known = [stage for stage in network.stages() if _is_given(stage, fresh)]
        chosen = set().union(*(self._chosen(network, stage) for stage in known))
        if known and not chosen:
            raise ValueError(
                f"{type(self).__name__} leaves nothing to train but the head: "
                f"{type(network).__name__} has no such parameters"
            )
        return {name for stage in known for name in stage_parameters(network, stage)} - chosen


@dataclass(frozen=True)
class NormOnly(_Selected):
    """Move the normalisation layers, statistics included, and the head; all else stays as it is, in evaluation mode.

    Source: Frankle et al. 2021, *Training BatchNorm and Only BatchNorm*; as affine tuning of 3D networks in
    Silva-Rodríguez et al. 2023 (FSEFT).
    """

    def _chosen(self, network: Network, stage: Stage) -> set[str]:
        return norm_parameters(network, stage)

    def set_modes(self, network: Network, fresh: Collection[str]) -> None:
        """Put all of the stages that weights gave in evaluation mode, but for the layers that normalise."""
        for stage in network.stages():
            if _is_given(stage, fresh):
                for module in stage_modules(network, stage):
                    module.training = module.training and isinstance(module, NORMS)


@dataclass(frozen=True)
class BiasOnly(_Selected):
    """Move the biases and the head; all else, statistics included, stays as it is, in evaluation mode.

    Source: Ben Zaken et al. 2022 (BitFit).
    """

    def _chosen(self, network: Network, stage: Stage) -> set[str]:
        return {name for name in stage_parameters(network, stage) if name.rpartition(".")[2] in BIASES}

    def set_modes(self, network: Network, fresh: Collection[str]) -> None:
        """Put the stages that weights gave in evaluation mode."""
        for stage in network.stages():
            if _is_given(stage, fresh):
                for module in stage_modules(network, stage):
                    module.training = False


def _is_given(stage: Stage, fresh: Collection[str]) -> bool:
    return stage.part != "head" and stage.name not in fresh


@dataclass(frozen=True)
class LayerWiseDecay(Adaptation):
    """Let stages learn the slower, the nearer they are to the input.

    The last stage has the full rate, each one before it `decay` times that of the next. A stage that holds fresh
    parameters has the full rate too and does not count as a step down, so weights of an encoder alone leave the decoder
    at the full rate.

    Published decays belong to a number of stages: 0.65 to 0.75 to the 14 of a ViT-B (embedding, 12 blocks, head), which
    leaves the embedding 0.75 ** 13 = 0.024 of the rate; 1 / 2.6 = 0.385 to the 5 of ULMFiT, 0.385 ** 4 = 0.022. To
    reach the same depth in n stages, take 0.024 ** (1 / (n - 1)).

    Source: discriminative fine-tuning in ULMFiT (Howard & Ruder 2018), where each rate is the next one divided by 2.6;
    as a factor for each block in BEiT (Bao et al. 2022).

    Args:
        decay: Factor per stage, above 0 and at most 1.
        over: `all` steps down along the whole path from the output; `encoder` from the encoder's last stage, and all
            after it has the full rate.
    """

    decay: float = 0.75
    over: Literal["all", "encoder"] = "all"

    def __post_init__(self) -> None:
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"the decay of LayerWiseDecay is {self.decay}; it must be above 0 and at most 1")

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return `decay` to the number of stages between a stage and the output that are not fresh."""
        known = self._counted(stages, fresh)
        depth = {name: below for below, name in enumerate(reversed(known))}
        return [self.decay ** depth.get(stage.name, 0) for stage in stages]

    def _counted(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[str]:
        parts = ("encoder",) if self.over == "encoder" else ("encoder", "decoder", "head")
        return [stage.name for stage in stages if stage.name not in fresh and stage.part in parts]

    def cautions(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[str]:
        """Warn of a stage that hardly moves, and of stages of the encoder that weights gave in part only."""
        encoder = [stage.name for stage in stages if stage.part == "encoder"]
        partly = [name for name in encoder if name in fresh]
        told = []
        if 0 < len(partly) < len(encoder):
            told = [f"LayerWiseDecay: {', '.join(partly)} hold parameters that no weights gave, and have the full rate"]
        lowest = min(self.multipliers(stages, fresh, 0, 1), default=1.0)
        if lowest >= LOWEST:
            return told
        known = len(self._counted(stages, fresh))
        return [
            *told,
            f"LayerWiseDecay leaves the first stage {lowest:.1e} of the rate: {self.decay} was meant for fewer stages "
            f"than these {known}; {LOWEST ** (1 / (known - 1)):.2f} leaves it {LOWEST}",
        ]


@dataclass(frozen=True)
class HeadMultiplier(Adaptation):
    """Let the head, and whatever else no checkpoint gave, learn faster than the rest.

    Without any weights all of the network is new, and only the head is faster.

    Source: 10 in domain adaptation (Ganin & Lempitsky 2015) and in the Transfer Learning Library (Jiang et al. 2022);
    MedicalNet (Chen et al. 2019) takes 100.

    Args:
        factor_of_head: Times the rate of the rest; above 0.
    """

    factor_of_head: float = 10.0

    def __post_init__(self) -> None:
        if not self.factor_of_head > 0:
            raise ValueError(f"factor_of_head of HeadMultiplier is {self.factor_of_head}; it must be above 0")

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return the factor for new stages, 1 for those that weights gave."""
        new = fresh if len(fresh) < len(stages) else ()
        return [self.factor_of_head if stage.part == "head" or stage.name in new else 1.0 for stage in stages]
