"""References on the scans' own grids, on which predictions are wanted in the end."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int8, Integer
from torch import Tensor

from lightning_atlas.data.cases import Case
from lightning_atlas.data.patches import Opened
from lightning_atlas.data.store.reading import read_case
from lightning_atlas.data.store.restore import to_file_grid


class FileReference(NamedTuple):
    """What was drawn on a scan, on the scan's own grid and in the recipe's classes.

    Args:
        rows: For each voxel its row of the tables.
        states: As in a batch.
        drawn: As in a batch.
        voxel_ml: Volume of a voxel.
    """

    rows: Integer[Tensor, "i j k"]
    states: Int8[Tensor, "rows classes"]
    drawn: Bool[Tensor, "rows classes"]
    voxel_ml: float


def file_reference(case: Case, opened: Opened) -> FileReference:
    """Read the labels of a case again: nothing of them was resampled, so that there may be rows of other numbers."""
    drawing = read_case(case)[1]
    table = opened.classes.table(drawing.states, drawing.drawn, drawing.names, opened.vocabulary)
    return FileReference(
        rows=torch.from_numpy(drawing.rows.astype(np.int16)),
        states=torch.from_numpy(table.states),
        drawn=torch.from_numpy(table.drawn),
        voxel_ml=float(abs(np.linalg.det(drawing.affine[:3, :3]))) / 1000,
    )


def ceilings(cases: Iterable[tuple[Case, Opened]], classes: Sequence[str]) -> dict[str, float]:
    """Return each class's Dice of the reference itself, sent to the network's grid and back: what the grid loses.

    The mean is over the cases that have the class drawn and present; NaN where there is none.
    """
    scores: dict[str, list[float]] = {name: [] for name in classes}
    for case, opened in cases:
        reference = file_reference(case, opened)
        rows = reference.rows.long()
        back = to_file_grid(torch.from_numpy(opened.prepared.label().astype(np.int64)), opened.prepared)
        for number, name in enumerate(classes):
            drawn = reference.drawn[:, number][rows]
            ours = (reference.states[:, number] == 1)[rows] & drawn
            theirs = torch.from_numpy(opened.table.states[:, number] == 1)[back] & drawn
            if ours.any():
                scores[name].append(2 * float((ours & theirs).sum()) / float(ours.sum() + theirs.sum()))
    return {name: float(np.mean(values)) if values else float("nan") for name, values in scores.items()}
