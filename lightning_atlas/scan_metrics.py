"""How well whole scans are told apart or measured: scores of torchmetrics, with intervals over cases."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_accuracy, binary_auroc, binary_average_precision
from torchmetrics.functional.regression import mean_absolute_error, r2_score
from torchmetrics.utilities import dim_zero_cat

Kind = Literal["class", "labels", "values"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEASURES: dict[Kind, tuple[str, ...]] = {
    "class": ("accuracy", "top5", "auroc", "auprc"),
    "labels": ("auroc", "auprc", "accuracy"),
    "values": ("mae", "r2"),
}
"""Of each kind of target; the first stands for the whole in curves, progress and `val/...` of a checkpoint."""
TOP = {"accuracy": 1, "top5": 5}
"""Scores of classes: the true one is among so many likeliest."""
MANY = 100
"""Of more classes than this, each against the others says little and takes long, and a line for each is not read."""
DRAWS, SEED = 300, 0
NOTES = {
    "class": "accuracy: share of the cases, in a class's row of its own cases (recall); top5: the true class is among "
    "the five likeliest, of more than five; AUROC and AUPRC: each class against the others.",
    "labels": "AUROC and AUPRC: of each label; accuracy: at a probability of 0.5.",
    "values": "mae: mean absolute error in the value's units; r2: share of the variance that is explained.",
}


class ScanResult:
    """What was predicted of each case, in the order of `index`.

    Args:
        kind: What the targets are.
        index: The cases' positions in their split.
        values: Probabilities, or numbers in the targets' units.
        target: The number of the class (-1: not known), or labels or values (NaN: not known).
    """

    # No dataclass: torchmetrics rewrites the fields of one that compute returns, and drops the axes of single numbers.
    def __init__(
        self,
        kind: Kind,
        index: Integer[Tensor, " cases"],
        values: Float[Tensor, "cases outputs"],
        target: Shaped[Tensor, "cases ..."],
    ) -> None:
        self.kind: Kind = kind
        self.index = index
        self.values = values
        self.target = target
        self._rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self._hits: dict[str, Bool[Tensor, " cases"]] = {}

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the scores, of those of its kind, that say something of so many classes."""
        if self.kind != "class":
            return MEASURES[self.kind]
        outputs = self.values.shape[1]
        left_out = [*(["top5"] if outputs <= TOP["top5"] else []), *(["auroc", "auprc"] if outputs > MANY else [])]
        return tuple(name for name in MEASURES["class"] if name not in left_out)

    @property
    def headline(self) -> str:
        """Name of the score that stands for all."""
        return MEASURES[self.kind][0]

    @property
    def mean(self) -> float:
        """The score that stands for all; NaN if it does not exist."""
        return self.overall()[self.headline]

    def of(self, cases: Integer[Tensor, " chosen"] | Bool[Tensor, " cases"]) -> "ScanResult":
        """Return the result on some of the cases, or on some several times."""
        part = ScanResult(self.kind, self.index[cases], self.values[cases], self.target[cases])
        part._hits = {name: each[cases] for name, each in self._hits.items()}
        return part

    def hits(self, measure: str) -> Bool[Tensor, " cases"]:
        """Return of each case whether its class is among the likeliest: the first, or with `top5` the first five."""
        if measure not in self._hits:
            count = TOP[measure]
            likeliest = self.values.argmax(1, keepdim=True) if count == 1 else self.values.topk(count).indices
            self._hits[measure] = (likeliest == self.target[:, None]).any(1)
        return self._hits[measure]

    def columns(self) -> Float[Tensor, "cases outputs"]:
        """Return the targets in as many columns as there are outputs; of classes 1 and 0. NaN: not known."""
        if self.kind != "class":
            return self.target.double()
        each = (self.target[:, None] == torch.arange(self.values.shape[1])).double()
        return torch.where(self.target[:, None] < 0, torch.nan, each)

    def per_output(self) -> dict[str, list[float]]:
        """Return each score of each class, label or value; NaN where it does not exist."""

        def ranked(measure: str) -> list[float]:
            pairs = zip(self.values.unbind(1), self.columns().unbind(1), strict=True)
            return [_score(measure, *each) for each in pairs]

        if self.kind == "class":
            return {name: self._recall(name) if name in TOP else ranked(name) for name in self.measures}
        return {name: ranked(name) for name in self.measures}

    def _recall(self, measure: str) -> list[float]:
        known, outputs = self.target >= 0, self.values.shape[1]
        found = torch.bincount(self.target[known & self.hits(measure)], minlength=outputs)
        return (found / torch.bincount(self.target[known], minlength=outputs)).tolist()

    def overall(self, each: Mapping[str, Sequence[float]] | None = None) -> dict[str, float]:
        """Return each score over all: a mean over classes, labels or values; the accuracy of classes is over cases.

        Args:
            each: What `per_output` returned, where that is known already.
        """
        found = {name: torch.tensor(row).nanmean().item() for name, row in (each or self.per_output()).items()}
        for name in found.keys() & TOP.keys() if self.kind == "class" else ():
            found[name] = _share(self.hits(name)[self.target >= 0].double())
        return found

    def scores(self, names: Sequence[str]) -> dict[str, float]:
        """Return the scores as they are logged: `auroc`, and `auroc/NAME` for each class, label or value, if few."""
        each = self.per_output()
        named = {
            f"{measure}/{name}": value
            for measure, row in each.items()
            for name, value in zip(names, row, strict=True)
            if len(names) <= MANY
        }
        return {**self.overall(each), **named}

    def per_dataset(self, datasets: Sequence[str]) -> dict[str, "ScanResult"]:
        """Return what was found in the cases of each dataset.

        Args:
            datasets: Of each case of the split, by the case's position in it.
        """
        found = [datasets[int(index)] for index in self.index]
        return {name: self.of(torch.tensor([each == name for each in found])) for name in dict.fromkeys(found)}

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return a row for each class, label or value and one for all, with intervals, as for a CSV file."""
        if tuple(names) not in self._rows:
            self._rows[tuple(names)] = self._computed_rows(names)
        return self._rows[tuple(names)]

    def _computed_rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        drawn = list(self._drawn())
        columns, each = self.columns(), self.per_output()
        rows = []
        for place, name in enumerate(names):
            known = columns[:, place][~columns[:, place].isnan()]
            row: dict[str, Any] = {"name": name, "n": len(known)}
            if self.kind != "values":
                row["positive"] = int(known.sum())
            for measure in self.measures:
                row |= _with_interval(measure, each[measure][place], [draw[0][measure][place] for draw in drawn])
            rows.append(row)
        known_cases = int((~columns.isnan()).any(1).sum())
        last: dict[str, Any] = {"name": "all", "n": known_cases, **({} if self.kind == "values" else {"positive": ""})}
        overall = self.overall(each)
        for measure in self.measures:
            last |= _with_interval(measure, overall[measure], [draw[1][measure] for draw in drawn])
        return [*rows, last]

    def table(self, names: Sequence[str]) -> str:
        """Return the rows as aligned text in ASCII."""
        rows, measures = self.rows(names), self.measures
        rows = rows if len(names) <= MANY else rows[-1:]
        width = max(4, *(len(row["name"]) for row in rows))
        cells = [[_interval(row, measure) for measure in measures] for row in rows]
        widths = [max(len(name), *(len(row[place]) for row in cells)) for place, name in enumerate(measures)]
        head = "  ".join(name.rjust(each) for name, each in zip(measures, widths, strict=True))
        lines = [f"{'':{width}}  {'n':>5}  {head}"]
        for row, told in zip(rows, cells, strict=True):
            scores = "  ".join(cell.rjust(each) for cell, each in zip(told, widths, strict=True))
            lines.append(f"{row['name']:{width}}  {row['n']:>5}  {scores}")
        note = f"In brackets: 95 % of {DRAWS} draws of as many cases with replacement; too narrow where cases are few."
        return "\n".join([*lines, NOTES[self.kind], *([note] if len(self.index) > 1 else [])])

    def _drawn(self) -> Iterator[tuple[dict[str, list[float]], dict[str, float]]]:
        """Yield the scores of draws of as many cases with replacement; nothing of a single case."""
        generator, cases = torch.Generator().manual_seed(SEED), len(self.index)
        for _ in range(DRAWS if cases > 1 else 0):
            part = self.of(torch.randint(cases, (cases,), generator=generator))
            each = part.per_output()
            yield each, part.overall(each)


class CaseTargets(Metric):
    """Collects what `ScanResult` tells, over ranks; a case that a sampler had to repeat counts once.

    Args:
        kind: What the targets are.
        outputs: How many classes, labels or values there are.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    index: list[Tensor]
    values: list[Tensor]
    target: list[Tensor]

    def __init__(self, kind: Kind, outputs: int) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.outputs = outputs
        for name in ("index", "values", "target"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        values: Float[Tensor, "batch outputs"],
        target: Shaped[Tensor, "batch ..."],
        index: Integer[Tensor, " batch"],
    ) -> None:
        """Keep the predictions and targets of a batch."""
        self.index.append(index.long())
        self.values.append(values.float())
        self.target.append(target.double())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather over ranks; one that saw no case adds none (torchmetrics would send floats of another shape)."""
        if len(self.index) == 0:
            columns = () if self.kind == "class" else (self.outputs,)
            self.index = [torch.empty(0, dtype=torch.long, device=self.device)]
            self.values = [torch.empty(0, self.outputs, device=self.device)]
            self.target = [torch.empty(0, *columns, dtype=torch.double, device=self.device)]
        super().sync(*args, **kwargs)

    def compute(self) -> ScanResult:
        """Return what was found, on the CPU."""
        index, values, target = (dim_zero_cat(state).cpu() for state in (self.index, self.values, self.target))
        index, order = index.sort(stable=True)
        first = index.diff(prepend=index[:1] - 1) != 0
        order = order[first]
        chosen = target[order].long() if self.kind == "class" else target[order]
        return ScanResult(self.kind, index[first], values[order].double(), chosen)


BINARY: dict[str, Callable[..., Tensor]] = {
    "auroc": binary_auroc,
    "auprc": binary_average_precision,
    "accuracy": binary_accuracy,
}


def _score(measure: str, values: Float[Tensor, " cases"], column: Float[Tensor, " cases"]) -> float:
    known = ~column.isnan()
    values, column = values[known], column[known]
    if measure == "mae":
        return mean_absolute_error(values, column).item() if len(column) else torch.nan
    if measure == "r2":
        spread = len(column) > 1 and bool(column.std() > 0)
        return r2_score(values, column).item() if spread else torch.nan
    truth = column.long()
    if len(truth) == 0 or (measure != "accuracy" and not 0 < int(truth.sum()) < len(truth)):
        return torch.nan  # without both kinds of cases there is nothing to tell apart
    return BINARY[measure](values, truth, validate_args=False).item()


def _share(right: Float[Tensor, " cases"]) -> float:
    return right.mean().item() if len(right) else torch.nan


def _with_interval(measure: str, value: float, drawn: Sequence[float]) -> dict[str, float]:
    known = torch.tensor([each for each in drawn if each == each], dtype=torch.double)
    ends = torch.tensor([0.025, 0.975], dtype=torch.double)
    low, high = known.quantile(ends).tolist() if len(known) else (torch.nan, torch.nan)
    return {measure: value, f"{measure}_low": low, f"{measure}_high": high}


def _interval(row: dict[str, Any], measure: str) -> str:
    value, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
    if value != value:
        return "-"
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low == low else "")
