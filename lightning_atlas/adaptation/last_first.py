"""The two stages of Humpire-Mamani et al.: what lies next to the output first, then everything."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lightning_atlas.adaptation.catalogue import LastStages
from lightning_atlas.adaptation.phases import HeadsFirst
from lightning_atlas.networks.base import Stage


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
