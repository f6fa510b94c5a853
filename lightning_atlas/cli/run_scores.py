"""What the scores of a run are worth: means over its cases, each with an interval."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

FILES = {"test": "cases.csv", "validation": "validation_cases.csv"}
DRAWS, SEED = 2000, 0
NOTE = (
    f"Intervals: 95 % of the means over {DRAWS} draws of as many cases with replacement (bootstrap percentiles). They "
    "say how much the mean depends on which cases were scored; patients of another kind are not among these."
)
SCAN_NOTE = (
    "Intervals: 95 % of draws of as many cases with replacement (bootstrap percentiles): too narrow where cases are "
    "few or all are right. Patients of another kind are not among these."
)
SINGLE = "A single case gives no interval: how much the score depends on the case is not known."


def run_metrics(run: Path, classes: Sequence[str], predicts: str = "voxels") -> dict[str, Any] | None:
    """Return the scores of a run's test, or else of its validation; `None` where it has neither.

    Args:
        run: Its folder.
        classes: In the order in which they are to be listed.
        predicts: As in the contract.
    """
    for split, name in FILES.items():
        if (run / name).is_file() and predicts != "voxels":
            return {"split": split, **scan_metrics(run / name.replace("cases", "scores"))}
        if (run / name).is_file():
            return {"split": split, **metrics(read_dice(run / name, classes), classes)}
    return None


def scan_metrics(path: Path) -> dict[str, Any]:
    """Return the scores of whole scans: a row for each class, label or value, and the last for all.

    Args:
        path: The table that the run wrote, with an interval behind each score.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    named = {row.pop("name"): {key: float(cell) if cell else None for key, cell in row.items()} for row in rows}
    measures = [key.removesuffix("_low") for key in next(iter(named.values())) if key.endswith("_low")]
    cases = int(named["all"]["n"] or 0)
    return {"cases": cases, "note": SCAN_NOTE if cases > 1 else SINGLE, "measures": measures, "rows": named}


def read_dice(path: Path, classes: Sequence[str]) -> Float[np.ndarray, "cases classes"]:
    """Return each case's Dice; NaN where a class is absent from the reference, or has no column.

    Args:
        path: A table with a row for each case and a column for each class.
        classes: The columns wanted.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cells = [[float(row.get(name) or "nan") for name in classes] for row in rows]
    return np.array(cells, dtype=np.float64).reshape(len(rows), len(classes))


def metrics(dice: Float[np.ndarray, "cases classes"], classes: Sequence[str]) -> dict[str, Any]:
    """Return mean, interval and number of cases of each class, and of the mean over the classes.

    Args:
        dice: NaN where a class is absent from a case.
        classes: Names of the columns.
    """
    known = ~np.isnan(dice)
    generator = np.random.default_rng(SEED)
    cases = len(dice)
    counts = generator.multinomial(cases, np.full(cases, 1 / cases), size=DRAWS) if cases > 1 else np.ones((1, cases))
    drawn = _class_means(dice, counts.astype(np.float64))
    values = _class_means(dice, np.ones((1, cases)))[0]
    rows = {
        name: _row(value, drawn[:, place], int(known[:, place].sum()))
        for place, (name, value) in enumerate(zip(classes, values, strict=True))
    }
    mean = _row(_mean(values[None])[0], _mean(drawn), int(known.any(axis=1).sum()))
    return {"cases": cases, "note": NOTE if cases > 1 else SINGLE, "mean": mean, "classes": rows}


def _class_means(
    dice: Float[np.ndarray, "cases classes"], counts: Float[np.ndarray, "draws cases"]
) -> Float[np.ndarray, "draws classes"]:
    """Return each class's mean over cases that count several times or not at all; NaN where no case has the class."""
    known = ~np.isnan(dice)
    present = counts @ known
    return np.divide(counts @ np.where(known, dice, 0.0), present, out=np.full_like(present, np.nan), where=present > 0)


def _mean(values: Float[np.ndarray, "draws classes"]) -> Float[np.ndarray, " draws"]:
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _row(value: float, drawn: Float[np.ndarray, " draws"], cases: int) -> dict[str, Any]:
    drawn = drawn[~np.isnan(drawn)]
    low, high = (float(each) for each in np.percentile(drawn, [2.5, 97.5])) if cases > 1 else (None, None)
    return {"dice": None if np.isnan(value) else float(value), "low": low, "high": high, "n": cases}
