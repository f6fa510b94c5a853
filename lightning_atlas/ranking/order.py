"""Checkpoints in an order, without training them: scores with intervals over cases, and places that they allow."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_atlas.ranking.evidence import (
    EachFeatures,
    EachStates,
    Features,
    Resamples,
    States,
    logme,
    moments,
    probe,
)
from lightning_atlas.ranking.features import Labelled, Reading
from lightning_atlas.ranking.transferability import LevelFeatures, cc_fv, distribution_over_outputs, leep

SCORES = {"probe": "probe (AUC)", "logme": "LogME", "leep": "LEEP", "cc_fv": "CC-FV"}
"""Scores in the order in which they are believed, with what they are called; of each, more is better."""
RESAMPLES = 200
TAILS = (0.025, 0.975)
CAUTION = (
    "the evidence for such scores is thin: of seven in three medical applications none was reliable (Chaves et al. "
    "2023, https://arxiv.org/abs/2308.07444). They tell a bad start from a good one, hardly the best from the second: "
    "train what is not told apart. Weights that were trained on these very cases look better than they are."
)


class Score(NamedTuple):
    """A score with its interval of 95 % over resampled units; without one where there are no resamples to score."""

    value: float
    low: float
    high: float


@dataclass
class Unit:
    """What a network computes at the drawn voxels of one unit: a patient, a scan, or some planes.

    Args:
        fine: What the last layer reads.
        states: Of the voxels.
        levels: By the name of the decoder's stage: features, and the place on the level's grid.
        logits: Of the network's own head.
    """

    fine: list[Features] = field(default_factory=list)
    states: list[States] = field(default_factory=list)
    levels: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    logits: list[Tensor] = field(default_factory=list)

    def add(self, reading: Reading, labelled: Labelled, chosen: Tensor, window: int) -> None:
        """Take in some voxels of one window.

        Args:
            reading: Of the window.
            labelled: Its voxels.
            chosen: Which of these belong to this unit.
            window: A number of its own for each, so that places in two windows are two.
        """
        self.fine.append(reading.fine[chosen])
        self.states.append(labelled.states[chosen])
        self.logits.append(reading.logits[chosen])
        for name, level in reading.levels.items():
            cells = torch.stack([torch.full_like(level.cells, window), level.cells], dim=1)
            self.levels.setdefault(name, []).append((level.features[chosen], cells[chosen]))

    def level(self, name: str, classes: int) -> LevelFeatures:
        """Return a level's features, each of its cells once for each class that it holds.

        Args:
            name: Of the stage.
            classes: How many columns of the states are classes; a background is none.
        """
        features, cells = (torch.cat(each) for each in zip(*self.levels[name], strict=True))
        inside = torch.cat(self.states)[:, :classes] == 1
        _, number = cells.unique(dim=0, return_inverse=True)
        first = torch.full((int(number.max()) + 1,), len(number)).scatter_reduce(
            0, number, torch.arange(len(number)), "amin"
        )
        members = torch.zeros(len(first), classes, dtype=torch.int8)
        members.scatter_reduce_(0, number[:, None].expand(-1, classes), inside.to(torch.int8), "amax")
        return LevelFeatures(features[first], members.bool())


def resampled(units: int, seed: int = 0, resamples: int = RESAMPLES) -> Resamples:
    """Return how often each unit stands in each sample drawn with replacement; first comes the sample itself."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(units, (resamples, units), generator=generator)
    counts = torch.zeros(resamples, units, dtype=torch.long).scatter_add_(1, drawn, torch.ones_like(drawn))
    return torch.cat([torch.ones(1, units, dtype=torch.long), counts])


def score(units: Sequence[Unit], classes: int, head: str | None, resamples: Resamples) -> dict[str, Score | None]:
    """Return every score of a network that can be had, `None` for the others.

    Args:
        units: Its features.
        classes: How many columns of the states are classes.
        head: What its own outputs are: `softmax`, `sigmoid`, or `None` where it has none that was trained.
        resamples: The same for all networks, so that these are compared on the same units.
    """
    fine = [torch.cat(unit.fine) for unit in units]
    states = [torch.cat(unit.states) for unit in units]
    features = _standardised(fine)
    found = [moments(*each) for each in zip(features, states, strict=True)]
    areas = probe(found, features, states).nanmean(1)
    kept = (~areas.isnan()).double()
    counts = resamples.double()
    names = list(units[0].levels)
    levels = [[unit.level(name, classes) for unit in units] for name in names]
    values = {
        "probe": (counts @ areas.nan_to_num()) / (counts @ kept),
        "logme": logme(found, resamples),
        "leep": _leep(units, states, head, resamples) if head else None,
        "cc_fv": cc_fv(levels, resamples),
    }
    return {name: None if each is None else interval(each) for name, each in values.items()}


def _standardised(units: Sequence[EachFeatures]) -> list[Float[Tensor, "_ features_and_one"]]:
    """Return features with mean 0 and spread 1 over all units, and a constant: networks compute at any scale."""
    whole = torch.cat(list(units)).double()
    mean, spread = whole.mean(0), whole.std(0)
    spread = torch.where(spread > 0, spread, 1.0)
    return [torch.cat([(each.double() - mean) / spread, torch.ones(len(each), 1)], dim=1) for each in units]


def _leep(
    units: Sequence[Unit], states: Sequence[EachStates], head: str, resamples: Resamples
) -> Float[Tensor, " resamples"] | None:
    """Return LEEP over the voxels of which all is known; each set of classes that occurs is a label."""
    whole = torch.cat(list(states))
    known = (whole >= 0).all(dim=1)
    if not bool(known.any()):
        return None
    labels = whole[known].unique(dim=0, return_inverse=True)[1]
    logits = torch.cat([torch.cat(unit.logits) for unit in units])[known]
    probabilities = distribution_over_outputs(logits, overlapping=head == "sigmoid")
    owner = torch.cat([torch.full((len(each),), number) for number, each in enumerate(states)])[known]
    return torch.stack([leep(probabilities, labels, counts.double()[owner]) for counts in resamples])


def interval(values: Float[Tensor, " resamples"]) -> Score | None:
    """Return the first value with the quantiles of the others; `None` where it is not a number."""
    if bool(values[0].isnan()):
        return None
    others = values[1:][~values[1:].isnan()]
    if not len(others):
        return Score(values[0].item(), -torch.inf, torch.inf)
    low, high = others.quantile(torch.tensor(TAILS, dtype=others.dtype)).tolist()
    return Score(values[0].item(), min(low, values[0].item()), max(high, values[0].item()))


def places(scores: Sequence[Score | None]) -> list[int | None]:
    """Return the place of each score: 1, and one more for each whose interval lies wholly above."""
    known = [each for each in scores if each is not None]
    return [None if each is None else 1 + sum(other.low > each.high for other in known) for each in scores]


def not_distinguishable(scores: Sequence[Score | None]) -> list[tuple[int, int]]:
    """Return the pairs whose intervals overlap."""
    pairs = combinations(range(len(scores)), 2)
    return [
        (one, other)
        for one, other in pairs
        if (a := scores[one]) and (b := scores[other]) and a.low <= b.high and b.low <= a.high
    ]
