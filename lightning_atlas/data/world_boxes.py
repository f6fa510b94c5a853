"""Boxes about lesions whose places a table has in millimetres: what LIDC's readers marked, as LUNA16 lists it."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lightning_atlas.data.box_targets import BoxTargets
from lightning_atlas.data.cases import Case
from lightning_atlas.data.labels.classes import Table
from lightning_atlas.data.sources.tables import read_rows
from lightning_atlas.data.store.prepare import Prepared
from lightning_atlas.types import Boxes

NAMES = ("subject", "seriesuid", "patient")
"""Columns that say whose a lesion is."""
COLUMNS = (("coordX", "x_mm"), ("coordY", "y_mm"), ("coordZ", "z_mm"), ("diameter_mm", "diameter"))
"""Columns of the centre and the diameter, in millimetres: as LUNA16 calls them, or in plain words."""
TO_RAS = {"LPS": np.array([-1.0, -1.0, 1.0]), "RAS": np.ones(3)}

Lesion = tuple[float, float, float, float, float]
"""Centre and diameter in millimetres, and the number of the class."""


class WorldBoxes(BoxTargets):
    """Boxes about balls, of which a table has the centres and the diameters in millimetres, one a line.

    Columns: `subject` (or `seriesuid`, or `patient`), `coordX`, `coordY`, `coordZ` (or `x_mm`, `y_mm`, `z_mm`),
    `diameter_mm`, and where there are several names `class` with one of them. A scan without a line has no box.

    Args:
        table: CSV.
        names: Classes.
        axes: Where x, y, z run to: `LPS` (left, back, up) in DICOM and ITK, so in LIDC and LUNA16, or `RAS`.
        visible: Boxes of which less than this share of the volume lies in a patch are not asked of it.

    Source: Setio et al. 2017, the LUNA16 challenge, https://doi.org/10.1016/j.media.2017.06.015: nodules of LIDC-IDRI
        that three of four readers marked, in `annotations.csv`.
    """

    def __init__(
        self, table: Path, names: list[str], axes: Literal["LPS", "RAS"] = "LPS", visible: float = 0.25
    ) -> None:
        super().__init__(visible)
        if not names or len(set(names)) < len(names) or not all(names):
            raise ValueError(f"boxes: names are the classes, each once; found {names}")
        self.table = Path(table)
        self.names = tuple(names)
        self.axes: Literal["LPS", "RAS"] = axes

    def check(self, cases: Sequence[Case], classes: object = None, targets: object = None) -> None:
        """Read the table.

        Raises:
            ValueError: A column lacks, a cell is no number, or no line is about any of the scans.
        """
        super().check(cases, classes, targets)
        if all(case.split == "predict" for case in cases):
            return
        if not any(self._lesions(case) for case in cases):
            some = ", ".join(list(self.lines)[:3])
            raise ValueError(
                f"boxes: {self.table} has lines about {some}, but no scan is called so: {cases[0].subject}"
            )

    def of(self, case: Case, prepared: Prepared, table: Table) -> Boxes:
        """Return the boxes of a scan in voxels of the network's grid."""
        back = np.linalg.inv(np.array(prepared.affine))
        lesions = np.array(self._lesions(case)).reshape(-1, 5)
        middle = (lesions[:, :3] * TO_RAS[self.axes]) @ back[:3, :3].T + back[:3, 3] + 0.5
        half = lesions[:, 3:4] / 2 * np.linalg.norm(back[:3, :3], axis=1)  # a ball has the same width in all directions
        corners = np.concatenate([middle - half, middle + half], axis=1)
        return Boxes(torch.from_numpy(corners).float(), torch.from_numpy(lesions[:, 4]).long())

    @property
    def description(self) -> str:
        """A few words for reports."""
        return f"boxes of {', '.join(self.names)} by {self.table.name}"

    def _lesions(self, case: Case) -> list[Lesion]:
        names = (case.subject, case.patient)
        return next((self.lines[name] for name in names if name and name in self.lines), [])

    @cached_property
    def lines(self) -> dict[str, list[Lesion]]:
        """Subject -> its lesions."""
        rows = read_rows(self.table)
        given = list(rows[0][1])
        whose = next((name for name in NAMES if name in given), None)
        columns = [next((name for name in either if name in given), None) for either in COLUMNS]
        if whose is None or None in columns:
            wanted = ", ".join(["subject", *(either[0] for either in COLUMNS)])
            raise ValueError(f"boxes: {self.table} has the columns {', '.join(given)}; wanted are {wanted}")
        lines: dict[str, list[Lesion]] = {}
        for number, row in rows:
            x, y, z, diameter = (self._millimetres(number, row, column) for column in columns if column is not None)
            if diameter <= 0:
                told = f"{columns[-1]} is {diameter:g}; expected above 0 mm"
                raise ValueError(f"boxes: {self.table}, line {number}: {told}")
            lines.setdefault(row[whose], []).append((x, y, z, diameter, float(self._class(number, row))))
        return lines

    def _millimetres(self, number: int, row: Mapping[str, str], column: str) -> float:
        try:
            value = float(row[column])
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            told = f"{column} is {row[column]!r}; expected millimetres"
            raise ValueError(f"boxes: {self.table}, line {number}: {told}")
        return value

    def _class(self, number: int, row: Mapping[str, str]) -> int:
        if len(self.names) == 1:
            return 0
        if (said := row.get("class", "")) not in self.names:
            raise ValueError(
                f"boxes: {self.table}, line {number}: the class is {said!r}; names are {', '.join(self.names)}"
            )
        return self.names.index(said)
