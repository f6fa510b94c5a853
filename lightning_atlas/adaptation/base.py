"""What every adaptation answers: what it changes and holds, how fast each stage moves, what it does in a fit."""

from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar

from lightning.pytorch import Callback
from torch import Tensor

from lightning_atlas.networks.base import Network, Stage
from lightning_atlas.types import Image


class Adaptation:
    """A decision on what moves, and how fast; several act together.

    Rates multiply; what one holds, all hold. `fresh` names the stages with parameters that no checkpoint gave.
    """

    needs_anchor: ClassVar[bool] = False
    """The module keeps the values that the source weights gave, as `anchor`, also where a run resumes."""
    replaces_weight_decay: ClassVar[bool] = False
    """The optimizer's weight decay is 0."""
    whole_course: ClassVar[bool] = False
    """It is the whole course of the rate, by which a schedule would be multiplied."""
    per_tensor: ClassVar[bool] = False
    """Each tensor has a rate of its own, as `factor` says; otherwise each stage has one."""

    def build(self, network: Network, fresh: Collection[str]) -> None:
        """Change the structure: once, after the source weights are in, and alike for each verb."""

    def multipliers(self, stages: Sequence[Stage], fresh: Collection[str], step: int, total_steps: int) -> list[float]:
        """Return a factor of the learning rate for each stage, in their order; a stage at 0 rests.

        Args:
            stages: In forward order.
            fresh: Names of the stages that hold parameters which no checkpoint gave.
            step: Optimizer step, from 0.
            total_steps: Optimizer steps of the whole run.
        """
        return [1.0 for _ in stages]

    def always_zero(self, stages: Sequence[Stage], fresh: Collection[str], total_steps: int) -> set[str]:
        """Return the names of the stages whose multiplier is 0 at every step: no graph is built for these."""
        return set()

    def holds(self, network: Network, fresh: Collection[str]) -> set[str]:
        """Return the names of parameters that never move, though others of their stage may."""
        return set()

    def factor(self, name: str) -> float:
        """Return a factor of the learning rate of one parameter, now."""
        return 1.0

    def set_modes(self, network: Network, fresh: Collection[str]) -> None:
        """Choose modes inside stages that move; those at rest are in evaluation mode already."""

    def penalty(self, network: Network, image: Image) -> dict[str, Tensor]:
        """Return further terms of the training loss by name, weighted, right after the network saw the image."""
        return {}

    def callbacks(self) -> list[Callback]:
        """Return what acts at other moments of a fit."""
        return []

    def cautions(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[str]:
        """Return what a person should know before the first step."""
        return []


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
