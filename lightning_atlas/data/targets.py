"""What is known of whole scans: a class, labels or values, from a table, from the source, or for a whole dataset."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from lightning_atlas.contract import Contract, lone_sides, side_pairs
from lightning_atlas.data.cases import Case
from lightning_atlas.data.sources.tables import read_rows

UNKNOWN = -1
"""Number of a class that is not known."""
SHOWN = 5
"""Subjects or cells that an error names."""
YES_NO = {"1": 1.0, "0": 0.0, "yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0, "-1": math.nan}
EMPTY = ("", "nan", "na", "n/a", "null", "none", "unknown")
"""Cells that mean: not known."""

Told = Mapping[str, Any]


@dataclass(frozen=True)
class Targets:
    """What is to be predicted of each whole scan, and where it stands.

    A table has a line for each subject (column `subject`, or `patient`): for a `class` a column with the class's name,
    for `labels` a column called like each label with 1 or 0, for `values` one called like each value. An empty cell
    means: not known. Scans to predict on need no line.

    Args:
        kind: `class` (each scan is of one of the names), `labels` (it has each of the names or not) or `values`
            (numbers that are called so).
        names: Classes, labels or values, in the order of the network's outputs.
        table: CSV; `null` takes the `target` that the source says of each scan: the number of its class in `names`,
            or the value; in a manifest also `target:NAME` for each column.
        column: Of the table, with the name of the class; only for `class`.
        datasets: Dataset of a `Mixture` -> the name of the class, or name -> label or value, of all its scans.
    """

    kind: Literal["class", "labels", "values"]
    names: list[str]
    table: Path | None = None
    column: str = "target"
    datasets: dict[str, str | dict[str, float]] | None = None

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names) or not all(self.names):
            raise ValueError(f"targets: names are the classes, labels or values, each once; found {self.names}")
        if self.kind == "class" and len(self.names) < 2:
            raise ValueError(f"targets: kind: class needs two names at least, found {self.names[0]}")
        if self.table is not None and self.datasets:
            raise ValueError("targets: give a table or datasets, not both")

    def of(self, cases: Sequence[Case]) -> dict[str, Shaped[Tensor, " *columns"]]:
        """Return the target of each subject: the number of its class, or a row of labels or values.

        Raises:
            ValueError: A scan to train on or to score has no target, or a target is none of the names.
        """
        found, lost, faults = {}, [], []
        for case in cases:
            try:
                told = self._told(case)
                found[case.subject] = self._unknown() if told is None else self._read(told)
            except ValueError as error:
                faults.append(f"{case.subject}: {error}")
                continue
            if told is None and case.split != "predict":
                lost.append(case.subject)
        if faults:
            raise ValueError(f"targets{self._place}: {_some(faults, '; ')}")
        if lost:
            raise ValueError(
                f"targets{self._place}: {len(lost)} of {len(cases)} scans have no target: {_some(lost, ', ')}; "
                f"{self._remedy}"
            )
        return found

    def stated(self, contract: Contract) -> Contract:
        """Return a contract of voxels as one of whole scans.

        Raises:
            ValueError: Training mirrors, and a target has a side by its name.
        """
        if contract.mirrored_axes and (side_pairs(self.names) or lone_sides(self.names)):
            raise ValueError(
                f"augment mirrors along {', '.join(contract.mirrored_axes)}, and a mirrored scan would keep the side "
                f"in the names of its targets ({', '.join(self.names)}): mirror no axis"
            )
        return replace(contract, classes=tuple(self.names), overlapping=False, predicts=self.kind)

    def scale(self, targets: Sequence[Tensor]) -> tuple[tuple[float, float], ...] | None:
        """Return mean and standard deviation of each value over scans; `None` for classes and labels.

        Raises:
            ValueError: A value is not known of any scan.
        """
        if self.kind != "values":
            return None
        told = []
        for name, column in zip(self.names, torch.stack(list(targets)).unbind(1), strict=True):
            known = column[~column.isnan()].double()  # in single precision equal values can have a spread
            if not len(known):
                raise ValueError(f"targets{self._place}: no training scan has {name}; take it out of names")
            told.append((known.mean().item(), known.std(correction=0).item()))
        return tuple(told)

    @property
    def numbered(self) -> bool:
        """Whether the class of a scan is the number that the source says of it."""
        return self.kind == "class" and self.table is None and self.datasets is None

    @property
    def description(self) -> str:
        """A few words for reports."""
        return f"{self.kind} of each scan ({', '.join(self.names)})"

    @property
    def _place(self) -> str:
        return "" if self.table is None else f" ({self.table})"

    @property
    def _remedy(self) -> str:
        if self.table is not None:
            return "add a line for each (an empty cell means: not known)"
        if self.datasets is not None:
            return f"targets.datasets knows {', '.join(self.datasets)}"
        return "say them in a table: data.init_args.targets.init_args.table: FILE.csv"

    @cached_property
    def _lines(self) -> dict[str, Told]:
        """Subject or patient -> its line."""
        assert self.table is not None
        rows = read_rows(self.table)
        columns = list(rows[0][1])
        key = next((each for each in ("subject", "patient") if each in columns), None)
        wanted = [self.column] if self.kind == "class" else self.names
        missing = ["subject"] if key is None else [each for each in wanted if each not in columns]
        if key is None or missing:
            lacking = missing[0]
            near = get_close_matches(lacking, columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(columns)}"
            raise ValueError(f"targets: {self.table} has no column {lacking!r}; {hint}")
        lines: dict[str, Told] = {}
        for number, row in rows:
            if row[key] in lines:
                raise ValueError(f"targets: {self.table}, line {number}: {key} {row[key]!r} stands there twice")
            lines[row[key]] = row
        return lines

    def _told(self, case: Case) -> Any:
        """Return what is said of a case; `None` where nothing is."""
        if self.datasets is not None:
            return self.datasets.get(case.dataset)
        if self.table is None:
            said = case.target
            if self.kind == "class" and isinstance(said, Mapping) and self.column in said:
                return said[self.column] or ""
            return said
        if case.split == "predict" and not self.table.is_file():
            return None  # a run that predicts elsewhere, without the table that it was trained with
        line = self._lines.get(case.subject, self._lines.get(case.patient or ""))
        if line is None or self.kind != "class":
            return line
        return line[self.column]

    def _unknown(self) -> Tensor:
        return torch.tensor(UNKNOWN) if self.kind == "class" else torch.full((len(self.names),), math.nan)

    def _read(self, told: Any) -> Tensor:
        if self.kind == "class":
            return torch.tensor(self._class_number(told))
        if not isinstance(told, Mapping):
            if len(self.names) > 1:
                raise ValueError(f"the target is {told!r}, and there are {len(self.names)} names: say each by its name")
            told = {self.names[0]: told}
        return torch.tensor([self._number(name, told.get(name)) for name in self.names])

    def _class_number(self, told: Any) -> int:
        if isinstance(told, str) and told in self.names:
            return self.names.index(told)
        if isinstance(told, str) and told.strip().casefold() in EMPTY:
            return UNKNOWN
        if isinstance(told, int) and not isinstance(told, bool) and UNKNOWN <= told < len(self.names):
            return told
        near = get_close_matches(str(told), self.names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"classes are {', '.join(self.names)}"
        raise ValueError(f"the class is {told!r}, which is none of the names; {hint}")

    def _number(self, name: str, told: Any) -> float:
        text = str("" if told is None else told).strip().casefold()
        if text in EMPTY:
            return math.nan
        if self.kind == "labels" and (yes := YES_NO.get(text.removesuffix(".0"))) is not None:
            return yes
        try:
            value = float(text)
        except ValueError:
            value = math.inf
        if self.kind == "labels" or not math.isfinite(value):
            wanted = "1, 0 or nothing" if self.kind == "labels" else "a number or nothing"
            raise ValueError(f"{name} is {told!r}; expected {wanted}")
        return value


def _some(told: Sequence[str], between: str) -> str:
    return between.join(told[:SHOWN]) + (f" and {len(told) - SHOWN} more" if len(told) > SHOWN else "")
