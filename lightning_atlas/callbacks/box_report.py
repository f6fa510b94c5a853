"""What a report says where boxes are predicted: scores with intervals, each case's findings, and a picture of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from lightning_atlas.box_metrics import BoxResult
from lightning_atlas.callbacks.overlay import PALETTE, VIEWS, Scene, View, nearest_axes, panels
from lightning_atlas.callbacks.tables import write_rows
from lightning_atlas.types import Batch, Boxes

Rows = Float[np.ndarray, "_boxes 8"]
"""Six corners, class and score of each box."""
RATE = 1.0
"""False positives per image and class down to which boxes are counted for a case and shown in the picture."""


@dataclass(frozen=True)
class ShownBoxes:
    """The case that the picture shows, in RAS.

    Args:
        scene: With the image; nothing is labelled.
        reference: Boxes that are there.
        predicted: Boxes that were found.
        subject: Name of the case.
    """

    scene: Scene
    reference: Rows
    predicted: Rows
    subject: str


def first_boxes(batch: Batch, found: Sequence[Boxes], photograph: bool = False) -> ShownBoxes:
    """Return the first case of a batch as it is to be shown."""
    image, affine = batch["image"][0, 0].float().cpu().numpy(), batch["affine"][0].double().cpu().numpy()
    nothing = np.zeros(image.shape, dtype=np.int8)
    scene = Scene(image, nothing, nothing, tuple(batch["spacing_mm"][0].tolist()), photograph)
    known = [box_rows(each) for each in batch.get("boxes", [])[:1]] or [np.zeros((0, 8))]
    reference, predicted = (turned(each, image.shape, affine) for each in (known[0], box_rows(found[0])))
    return ShownBoxes(scene.to_ras(affine), reference, predicted, batch["subject"][0])


def box_rows(boxes: Boxes) -> Rows:
    """Return boxes as rows; those without scores have 1."""
    count = len(boxes.corners)
    scores = np.ones(count) if boxes.scores is None else boxes.scores.detach().double().cpu().numpy()
    corners = boxes.corners.detach().double().cpu().numpy().reshape(count, 6)
    return np.column_stack([corners, boxes.classes.cpu().numpy(), scores])


def turned(rows: Rows, sides: Sequence[int], affine: Float[np.ndarray, "4 4"]) -> Rows:
    """Return boxes in an array whose axes are turned to the nearest of right, front and up, as by `Scene.to_ras`.

    Args:
        rows: In voxels of the array as it was.
        sides: Of that array.
        affine: From its voxels to the world.
    """
    axes, backwards = nearest_axes(affine)
    result = rows.copy()
    for place, (axis, reverse) in enumerate(zip(axes, backwards, strict=True)):
        low, high = rows[:, axis], rows[:, 3 + axis]
        result[:, place] = sides[axis] - high if reverse else low
        result[:, 3 + place] = sides[axis] - low if reverse else high
    return result


def middle_plane(rows: Rows, axis: int, side: int) -> int:
    """Return the plane that cuts most of the boxes, the middle one where there are several; of the image without any.

    Args:
        rows: The boxes.
        axis: From which planes are cut.
        side: Planes that the image has.
    """
    centres = np.arange(side) + 0.5
    cut = ((rows[:, axis, None] <= centres) & (centres < rows[:, 3 + axis, None])).sum(0)
    places = np.flatnonzero(cut == cut.max())
    return int(places[len(places) // 2])


def boxes_figure(
    shown: ShownBoxes, least_scores: Sequence[float], classes: Sequence[str], title: str, subtitle: str = ""
) -> Figure:
    """Draw three planes, each without boxes, with those of the reference and with those that were found.

    Args:
        shown: The case.
        least_scores: Of each class; boxes below it are not drawn.
        classes: Names.
        title: Stands above all.
        subtitle: Stands below the title, smaller.
    """
    least = np.array([*least_scores, np.inf])[shown.predicted[:, 6].astype(int)]
    predicted = shown.predicted[shown.predicted[:, 7] >= least]
    planes_of = shown.reference if len(shown.reference) else predicted
    i, j, k = (middle_plane(planes_of, axis, side) for axis, side in enumerate(shown.scene.image.shape))
    planes = (i, j, k)
    there = sorted({int(number) for number in [*shown.reference[:, 6], *predicted[:, 6]]})
    figure = panels(shown.scene, planes, [_entry(number, classes) for number in there], title, subtitle)
    for place, axes in enumerate(figure.axes):
        view, column = VIEWS[place // 3], place % 3
        if column:
            for row in (shown.reference, predicted)[column - 1]:
                _draw(axes, row, view, shown.scene, planes[view.through], told=column == 2)
    return figure


def _entry(number: int, classes: Sequence[str]) -> Patch:
    colour = PALETTE[number % len(PALETTE)]
    style = "solid" if number < len(PALETTE) else "dotted"
    return Patch(facecolor=(*to_rgb(colour), 0.15), edgecolor=colour, linestyle=style, label=classes[number])


def _draw(axes: Axes, row: Float[np.ndarray, "8"], view: View, scene: Scene, plane: int, told: bool) -> None:
    """Draw where a plane cuts a box, with its score where it is `told`."""
    if not row[view.through] <= plane + 0.5 < row[3 + view.through]:
        return
    across, up = scene.spacing_mm[view.across], scene.spacing_mm[view.up]
    width = scene.image.shape[view.across] * across
    left, bottom = width - row[3 + view.across] * across, row[view.up] * up
    number = int(row[6])
    style = "solid" if number < len(PALETTE) else "dotted"
    sides = (row[3 + view.across] - row[view.across]) * across, (row[3 + view.up] - row[view.up]) * up
    colour = PALETTE[number % len(PALETTE)]
    shade = 0.3 + 0.7 * float(row[7])  # what is hardly believed is hardly seen
    look = {"edgecolor": colour, "linewidth": 1.4, "linestyle": style, "alpha": shade}
    axes.add_patch(Rectangle((left, bottom), *sides, fill=False, **look))
    if told:
        axes.text(
            left, bottom + sides[1], f"{row[7]:.2f}", color=colour, fontsize=6, ha="left", va="bottom", clip_on=True,
            alpha=shade, path_effects=[withStroke(linewidth=1.5, foreground="black")],
        )  # fmt: skip


def write_boxes(folder: Path, prefix: str, result: BoxResult, names: Sequence[str], subjects: Sequence[str]) -> None:
    """Write the scores, and of each case what was found, as two tables.

    Args:
        folder: Of the run.
        prefix: Of the files' names.
        result: Of a test or a validation.
        names: Of the classes.
        subjects: Of the split, in the order of their index.
    """
    write_rows(folder / f"{prefix}scores.csv", result.rows(names))
    write_rows(folder / f"{prefix}cases.csv", case_rows(result, subjects))


def case_rows(result: BoxResult, subjects: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each case: its boxes, how many were found, and how many stand where there is none."""
    counts = result.case_counts(RATE).tolist()
    return [
        {"subject": subjects[index], "boxes": boxes, "found": found, "false": false}
        for index, (boxes, found, false) in zip(result.index.tolist(), counts, strict=True)
    ]


def dataset_table(datasets: Mapping[str, BoxResult]) -> str:
    """Return a line for each dataset, in ASCII."""
    width = max(len("dataset"), *(len(name) for name in datasets))
    lines = [f"{'dataset':{width}}  {'froc':>6}  {'AP50':>6}  {'boxes':>6}  {'cases':>5}"]
    for name, result in datasets.items():
        each = result.overall()
        shown = ["-" if each[key] != each[key] else f"{each[key]:.3f}" for key in ("froc", "ap50")]
        scores = "  ".join(f"{value:>6}" for value in shown)
        lines.append(f"{name:{width}}  {scores}  {int(result.truths.sum()):>6}  {len(result.index):>5}")
    return "\n".join(lines)
