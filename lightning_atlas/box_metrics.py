"""How well boxes are found: sensitivity at rates of false positives (FROC), and average precision, with intervals."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Shaped
from monai.data.box_utils import box_iou
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_atlas.types import Boxes

RATES = (0.5, 1.0, 2.0, 4.0)
"""False positives per image at which the sensitivity is told. Source: DeepLesion's benchmark (arXiv:2012.08770)."""
OVERLAPS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Least IoU of a box that counts as found, as in COCO; FROC and AP50 take the first."""
RECALLS = np.linspace(0, 1, 101)
"""At which COCO reads the precision."""
MEASURES = ("froc", "froc_strict", "ap50", "ap")
"""The first stands for the whole in curves, progress and `val/...` of a checkpoint."""
PLACES = [f"{name}_at_{rate:g}" for name in ("froc", "strict") for rate in RATES]
DRAWS, SEED = 300, 0
NOTES = (
    "Share of the reference's boxes that are found (IoU >= 0.5) at so many false boxes per image and class.",
    "published: a box finds all that it covers, and one on what is found already is not false; strict: one box, one "
    "finding.",
    "AP50: COCO's average precision at IoU 0.5; AP: its mean over IoU 0.5 to 0.95. Last row: mean over the classes.",
)


class Counts(NamedTuple):
    """What became of the predicted boxes of one class, from the highest score down.

    Args:
        case: Place of the image among the images.
        scores: Falling.
        hits: Boxes of the reference that this one is the first to cover.
        false: It covers none.
        strict: At each of `OVERLAPS`: it found a box that no other found before.
    """

    case: Integer[np.ndarray, " boxes"]
    scores: Float[np.ndarray, " boxes"]
    hits: Float[np.ndarray, " boxes"]
    false: Float[np.ndarray, " boxes"]
    strict: Float[np.ndarray, "boxes overlaps"]


def intersection_over_union(
    one: Float[Tensor, "ones 6"], other: Float[Tensor, "others 6"], planar: bool = False
) -> Float[Tensor, "ones others"]:
    """Return the IoU of each box with each other.

    Args:
        one: Corners, as in `Boxes`.
        other: Corners.
        planar: Look at i and j only.
    """
    axes = [0, 1, 3, 4] if planar else list(range(6))
    return torch.as_tensor(box_iou(one.float()[:, axes], other.float()[:, axes]))


def judged(found: Boxes, truth: Boxes, planar: bool = False) -> Float[Tensor, "boxes facts"]:
    """Return what became of each predicted box: class, score, hits, false, and a column of `strict` for each overlap.

    A box is compared with those of its own class. Source of the published counting: the DeepLesion benchmarks that
    followed 3DCE; of the strict one: COCO, in which a box takes the free one of the reference that it covers best.

    Args:
        found: Boxes of one image, with scores.
        truth: Those of the reference.
        planar: Compare boxes in the plane of i and j.

    Raises:
        ValueError: The boxes have no scores.
    """
    if found.scores is None:
        raise ValueError("boxes to be scored need scores, and these have none: a network's `found` must give them")
    order = found.scores.detach().cpu().argsort(descending=True, stable=True)
    corners, classes = found.corners.detach().cpu()[order], found.classes.cpu()[order]
    overlaps = intersection_over_union(corners, truth.corners.cpu(), planar)
    overlaps = torch.where(classes[:, None] == truth.classes.cpu()[None], overlaps, 0.0).numpy()
    facts = np.zeros((len(order), 4 + len(OVERLAPS)), dtype=np.float32)
    facts[:, 0], facts[:, 1] = classes.numpy(), found.scores.detach().cpu()[order].float().numpy()
    least = np.array(OVERLAPS, dtype=np.float32)
    covered = overlaps.max(1, initial=0.0) >= least[0]
    facts[:, 3] = ~covered
    hit = np.zeros(overlaps.shape[1], dtype=bool)
    free = np.ones((len(OVERLAPS), overlaps.shape[1]), dtype=bool)
    for place in np.flatnonzero(covered):
        fresh = (overlaps[place] >= least[0]) & ~hit
        facts[place, 2] = fresh.sum()
        hit |= fresh
        open_ = np.where(free, overlaps[place], -1.0)
        taken = open_.argmax(1)
        right = open_.max(1) >= least
        free[right, taken[right]] = False
        facts[place, 4:] = right
    return torch.from_numpy(facts)


class BoxResult:
    """What became of the boxes of each image, in the order of `index`.

    Args:
        index: The images' positions in their split.
        truths: How many boxes of each class each image has.
        case: Of each predicted box, the place of its image.
        facts: Of each predicted box, as `judged` returns them.
    """

    # No dataclass, for the reason in `ScanResult`.
    def __init__(
        self,
        index: Integer[Tensor, " cases"],
        truths: Integer[Tensor, "cases classes"],
        case: Integer[Tensor, " boxes"],
        facts: Float[Tensor, "boxes facts"],
    ) -> None:
        self.index = index
        self.truths = truths
        self.case = case
        self.facts = facts
        order = facts[:, 1].argsort(descending=True, stable=True)
        numbers, places = facts[order].numpy(), case[order].numpy()
        self.counts = [_counts(numbers[own], places[own]) for own in self._of_classes(numbers)]
        self._rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}

    def _of_classes(self, numbers: Float[np.ndarray, "boxes facts"]) -> Iterator[Bool[np.ndarray, " boxes"]]:
        return (numbers[:, 0] == number for number in range(self.truths.shape[1]))

    headline = MEASURES[0]
    """Name of the score that stands for all."""

    @property
    def mean(self) -> float:
        """The score that stands for all; NaN if it does not exist."""
        return self.overall()[self.headline]

    def of(self, cases: Bool[Tensor, " cases"]) -> "BoxResult":
        """Return the result on some of the images."""
        place = cases.long().cumsum(0) - 1
        kept = cases[self.case]
        return BoxResult(self.index[cases], self.truths[cases], place[self.case[kept]], self.facts[kept])

    def per_output(self, weights: Float[np.ndarray, " cases"] | None = None) -> dict[str, list[float]]:
        """Return each score of each class; NaN where the reference has no box of it.

        Args:
            weights: How often each image counts; once by default.
        """
        weights = np.ones(len(self.index)) if weights is None else weights
        positives = (weights[:, None] * self.truths.numpy()).sum(0)
        found = [_scores(*each, weights) for each in zip(self.counts, positives, strict=True)]
        return {name: [each[name] for each in found] for name in (*MEASURES, *PLACES)}

    def overall(self, weights: Float[np.ndarray, " cases"] | None = None) -> dict[str, float]:
        """Return the mean of each score over the classes that the reference has."""
        return {name: _mean(each) for name, each in self.per_output(weights).items()}

    def scores(self, names: Sequence[str]) -> dict[str, float]:
        """Return the scores as they are logged: `froc`, `froc_at_0.5`, and `froc/CLASS`."""
        per_output = self.per_output()
        each = {
            f"{measure}/{name}": value
            for measure in MEASURES
            for name, value in zip(names, per_output[measure], strict=True)
        }
        return {**self.overall(), **each}

    def per_dataset(self, datasets: Sequence[str]) -> dict[str, "BoxResult"]:
        """Return what was found in the images of each dataset.

        Args:
            datasets: Of each image of the split, by its position in it.
        """
        found = [datasets[int(index)] for index in self.index]
        return {name: self.of(torch.tensor([each == name for each in found])) for name in dict.fromkeys(found)}

    def least_scores(self, rate: float = 1.0) -> list[float]:
        """Return for each class the lowest score down to which it has at most so many false positives per image."""
        return [_least_score(each, rate * len(self.index)) for each in self.counts]

    def case_counts(self, rate: float = 1.0) -> Integer[Tensor, "cases 3"]:
        """Return of each image its boxes, how many are found, and how many false ones stand there (strict counting).

        Args:
            rate: False positives per image and class down to which boxes are looked at, in the published counting.
        """
        least = torch.tensor(self.least_scores(rate))
        kept = self.facts[:, 1] >= least[self.facts[:, 0].long()]
        right = self.facts[kept, 4].long()
        counts = torch.zeros(len(self.index), 3, dtype=torch.long)
        counts[:, 0] = self.truths.sum(1)
        counts[:, 1].index_add_(0, self.case[kept], right)
        counts[:, 2].index_add_(0, self.case[kept], 1 - right)
        return counts

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return a row for each class and one for their mean, with intervals, as for a CSV file."""
        if tuple(names) not in self._rows:
            self._rows[tuple(names)] = self._computed_rows(names)
        return self._rows[tuple(names)]

    def _computed_rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        drawn, each = list(self._drawn()), self.per_output()
        boxes = self.truths.sum(0).tolist()
        rows = []
        for place, name in enumerate(names):
            row: dict[str, Any] = {"name": name, "n": len(self.index), "boxes": boxes[place]}
            for measure in MEASURES:
                row |= _with_interval(measure, each[measure][place], [draw[measure][place] for draw in drawn])
            rows.append(row | {key: each[key][place] for key in PLACES})
        last: dict[str, Any] = {"name": "all", "n": len(self.index), "boxes": sum(boxes)}
        overall = self.overall()
        for measure in MEASURES:
            last |= _with_interval(measure, overall[measure], [_mean(draw[measure]) for draw in drawn])
        return [*rows, last | {key: overall[key] for key in PLACES}]

    def table(self, names: Sequence[str]) -> str:
        """Return the rows as aligned text in ASCII, both countings side by side."""
        rows = self.rows(names)
        width = max(5, *(len(name) for name in names))
        rates = "".join(f"{rate:>7g}" for rate in RATES)
        lines = [
            f"{'':{width}}  {'':>6} | {'published, false per image':^{7 * len(RATES) + 7}} | "
            f"{'strict, false per image':^{7 * len(RATES) + 7}} |",
            f"{'':{width}}  {'boxes':>6} | {rates}{'mean':>7} | {rates}{'mean':>7} | {'AP50':>6}{'AP':>7}",
        ]
        for row in rows:
            both = (["froc_at", "froc"], ["strict_at", "froc_strict"])
            cells = [
                "".join(_cell(row[key]) for key in (*(f"{at}_{rate:g}" for rate in RATES), mean)) for at, mean in both
            ]
            rest = f"{_cell(row['ap50'])[1:]}{_cell(row['ap'])}"
            lines.append(f"{row['name']:{width}}  {row['boxes']:>6} | {cells[0]} | {cells[1]} | {rest}")
        return "\n".join([*lines, *NOTES, *_intervals(rows[-1])])

    def _drawn(self) -> Iterator[dict[str, list[float]]]:
        """Yield the scores of draws of as many images with replacement; nothing of a single image."""
        generator, cases = np.random.default_rng(SEED), len(self.index)
        for _ in range(DRAWS if cases > 1 else 0):
            yield self.per_output(np.bincount(generator.integers(cases, size=cases), minlength=cases).astype(float))


class BoxScores(Metric):
    """Collects what `BoxResult` tells, over ranks; an image that a sampler had to repeat counts once.

    Args:
        classes: How many there are.
        planar: Boxes are compared in the plane of i and j.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    index: list[Tensor]
    truths: list[Tensor]
    found: list[Tensor]
    facts: list[Tensor]

    def __init__(self, classes: int, planar: bool = False) -> None:
        super().__init__()
        self.classes = classes
        self.planar = planar
        for name in ("index", "truths", "found", "facts"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, found: Sequence[Boxes], truth: Sequence[Boxes], index: Integer[Tensor, " batch"]) -> None:
        """Keep what became of the boxes of a batch."""
        for boxes, reference in zip(found, truth, strict=True):
            facts = judged(boxes, reference, self.planar)
            self.facts.append(facts.to(self.device))
            self.found.append(torch.tensor([len(facts)], device=self.device))
            self.truths.append(reference.classes.long().bincount(minlength=self.classes)[None].to(self.device))
        self.index.append(index.long().to(self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather over ranks; one that saw no image adds none (torchmetrics would send floats of another shape)."""
        if len(self.index) == 0:
            self.index = [torch.empty(0, dtype=torch.long, device=self.device)]
            self.found = [torch.empty(0, dtype=torch.long, device=self.device)]
            self.truths = [torch.empty(0, self.classes, dtype=torch.long, device=self.device)]
            self.facts = [torch.empty(0, 4 + len(OVERLAPS), device=self.device)]
        super().sync(*args, **kwargs)

    def compute(self) -> BoxResult:
        """Return what was found, on the CPU."""
        index, truths, found, facts = (
            dim_zero_cat(each).cpu() for each in (self.index, self.truths, self.found, self.facts)
        )
        ordered, order = index.sort(stable=True)
        first = ordered.diff(prepend=ordered[:1] - 1) != 0
        order = order[first]
        parts = facts.split(found.tolist())
        chosen = [parts[int(each)] for each in order]
        case = torch.arange(len(order)).repeat_interleave(found[order])
        return BoxResult(ordered[first], truths[order], case, torch.cat([facts[:0], *chosen]))


def _counts(numbers: Float[np.ndarray, "boxes facts"], case: Integer[np.ndarray, " boxes"]) -> Counts:
    numbers = numbers.astype(np.float64)
    return Counts(case, numbers[:, 1], numbers[:, 2], numbers[:, 3], numbers[:, 4:])


def _ends(scores: Shaped[np.ndarray, " boxes"]) -> Integer[np.ndarray, " steps"]:
    """Return the last place of each score: boxes of the same score are reported together or not at all."""
    return np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.zeros(0, dtype=int)


def _scores(counts: Counts, positives: float, weights: Float[np.ndarray, " cases"]) -> dict[str, float]:
    if positives == 0:
        return dict.fromkeys((*MEASURES, *PLACES), float("nan"))
    times, images, ends = weights[counts.case], weights.sum(), _ends(counts.scores)

    def curve(right: np.ndarray, wrong: np.ndarray) -> list[float]:
        sensitivity = np.cumsum(times * right)[ends] / positives
        rate = np.cumsum(times * wrong)[ends] / images
        return np.interp(RATES, np.append(0.0, rate), np.append(0.0, sensitivity)).tolist()

    published = curve(counts.hits, counts.false)
    strict = curve(counts.strict[:, 0], 1 - counts.strict[:, 0])
    # Recall rises, and precision is best, where something is found: the other boxes need not be looked at.
    places = np.flatnonzero(counts.strict.any(1))
    steps = np.searchsorted(ends, places)
    last = _ends(steps)
    right = np.cumsum(times[places, None] * counts.strict[places], 0)[last]
    precisions = _average_precisions(right, times.cumsum()[ends[steps[last]]], positives)
    means = (np.mean(published), np.mean(strict), precisions[0], precisions.mean())
    return dict(zip((*MEASURES, *PLACES), map(float, (*means, *published, *strict)), strict=True))


def _average_precisions(
    right: Float[np.ndarray, "steps overlaps"], taken: Float[np.ndarray, " steps"], positives: float
) -> Float[np.ndarray, " overlaps"]:
    """Return COCO's average precision at each overlap: the mean over `RECALLS` of the best precision from there on."""
    recall = right / positives
    precision = np.divide(right, taken[:, None], out=np.zeros_like(right), where=taken[:, None] > 0)
    best = np.maximum.accumulate(precision[::-1], 0)[::-1]
    best = np.concatenate([best, np.zeros((1, right.shape[1]))])
    columns = zip(recall.T, best.T, strict=True)
    return np.array([values[np.searchsorted(column, RECALLS)].mean() for column, values in columns])


def _least_score(counts: Counts, allowed: float) -> float:
    ends = _ends(counts.scores)
    within = ends[np.cumsum(counts.false)[ends] <= allowed]
    return float(counts.scores[within[-1]]) if len(within) else float("inf")


def _mean(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.double).nanmean().item()


def _with_interval(measure: str, value: float, drawn: Sequence[float]) -> dict[str, float]:
    known = [each for each in drawn if each == each]
    low, high = np.percentile(known, [2.5, 97.5]).tolist() if known else (float("nan"), float("nan"))
    return {measure: value, f"{measure}_low": low, f"{measure}_high": high}


def _cell(value: float) -> str:
    return f"{'-':>7}" if value != value else f"{value:>7.3f}"


def _intervals(row: dict[str, Any]) -> list[str]:
    """Return the intervals of the last row as a line; none of a single image."""
    told = [f"{name} {row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f}" for name in MEASURES]
    known = row["froc_low"] == row["froc_low"]
    return [f"95 % of {DRAWS} draws of as many images with replacement: {', '.join(told)}"] if known else []
