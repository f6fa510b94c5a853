"""The overlay picture: three planes of image, reference and prediction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

UNKNOWN = -1
"""In a reference: nobody decided on anything here."""

# Twelve colours that differ in lightness as well as in hue, ordered so that neighbours differ most; the first seven are
# those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with any common colour blindness tell apart.
PALETTE = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
    "#882255", "#99DDBB", "#B39DDB", "#8D6E63", "#F8BBD0",
)  # fmt: skip


class View(NamedTuple):
    """A plane and how it is shown, in axes that run to the right (0), to the front (1) and upwards (2).

    Args:
        name: As radiologists say it.
        across: Axis across the screen; it runs to the left, so that the patient's right is at the left.
        up: Axis up the screen.
        through: Axis that the plane is cut from.
        letters: Shown at the left, right, upper and lower edge.
    """

    name: str
    across: int
    up: int
    through: int
    letters: str


VIEWS = (
    View("axial", 0, 1, 2, "RLAP"),
    View("coronal", 0, 2, 1, "RLSI"),
    View("sagittal", 1, 2, 0, "APSI"),
)
LETTERS = (
    (0.015, 0.5, "left", "center"),
    (0.985, 0.5, "right", "center"),
    (0.5, 0.985, "center", "top"),
    (0.5, 0.015, "center", "bottom"),
)
"""Where an edge's letter stands in its panel, and how it is aligned there."""
DPI = 150
COLUMN = 3.3
"""Width of a column in inches."""
MARGIN = 0.25
TALLEST = 12.0
"""The most that the three planes together take, in inches."""
GREY = "#5A5A5A"


@dataclass(frozen=True)
class Scene:
    """One case to be shown; its arrays run to the right, to the front and upwards once `to_ras` has seen it.

    Args:
        image: Intensities.
        reference: 0 is background, c + 1 the class c, -1 not known.
        prediction: 0 is background, c + 1 the class c.
        spacing_mm: Size of a voxel along each axis of the arrays.
        photograph: It has no sides of a body, no millimetres, and one view: the picture.
    """

    image: Float[np.ndarray, "i j k"]
    reference: Integer[np.ndarray, "i j k"]
    prediction: Integer[np.ndarray, "i j k"]
    spacing_mm: tuple[float, ...]
    photograph: bool = False

    @property
    def views(self) -> Sequence["View"]:
        """Those that are drawn."""
        return VIEWS[:1] if self.photograph else VIEWS

    def to_ras(self, affine: Float[np.ndarray, "4 4"]) -> "Scene":
        """Return the scene with each axis turned to the nearest of right, front and up."""
        axes, backwards = nearest_axes(affine)

        def turn(array: np.ndarray) -> np.ndarray:
            return np.flip(array.transpose(axes), tuple(axis for axis in range(3) if backwards[axis]))

        spacing = tuple(self.spacing_mm[axis] for axis in axes)
        return replace(
            self,
            image=turn(self.image),
            reference=turn(self.reference),
            prediction=turn(self.prediction),
            spacing_mm=spacing,
        )


def nearest_axes(affine: Float[np.ndarray, "4 4"]) -> tuple[list[int], list[bool]]:
    """Return for right, front and up the array axis that lies nearest, and whether it runs the other way."""
    turned = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left = np.abs(turned)
    axes = [0, 0, 0]
    for _ in range(3):
        world, axis = np.unravel_index(np.argmax(left), left.shape)
        axes[int(world)] = int(axis)
        left[world, :] = left[:, axis] = -1
    return axes, [bool(turned[world, axis] < 0) for world, axis in enumerate(axes)]


def middle(reference: Integer[np.ndarray, "i j k"]) -> tuple[int, int, int]:
    """Return along each axis the plane in the middle of the labelled voxels: one that has some, if any plane has."""
    places = np.argwhere(reference > 0)
    if len(places) == 0:
        i, j, k = (side // 2 for side in reference.shape)
    else:
        i, j, k = (int(place) for place in np.sort(places, axis=0)[(len(places) - 1) // 2])
    return i, j, k


def overlay(scene: Scene, labels: Sequence[str], title: str, subtitle: str = "") -> Figure:
    """Draw three planes through the middle of the reference, all to one scale.

    Args:
        scene: The case, in RAS.
        labels: What the legend says of each class, in order.
        title: Stands above all.
        subtitle: Stands below the title, smaller.
    """
    planes = middle(scene.reference)
    return panels(scene, planes, legend_entries(scene, labels, planes), title, subtitle)


def panels(
    scene: Scene, planes: tuple[int, int, int], entries: Sequence[Patch], title: str, subtitle: str = ""
) -> Figure:
    """Draw three planes of image, reference and prediction, all to one scale; axes are in millimetres.

    Args:
        scene: The case, in RAS.
        planes: Numbers of the planes, to the right, to the front and upwards.
        entries: Of the legend.
        title: Stands above all.
        subtitle: Stands below the title, smaller.
    """
    extent = [side * spacing for side, spacing in zip(scene.image.shape, scene.spacing_mm, strict=True)]
    heights_mm = [extent[view.up] for view in scene.views]
    scale = min(COLUMN / max(extent[0], extent[1]), TALLEST / sum(heights_mm))  # inches per millimetre
    longest = max((len(str(entry.get_label())) for entry in entries), default=1)
    columns = max(1, min(6, int(3 * COLUMN / (0.55 + 0.08 * longest))))
    legend_height = 0.2 * -(-len(entries) // columns) + 0.35
    width = 3 * COLUMN + 2 * MARGIN + 0.16
    height = 0.85 + sum(heights_mm) * scale + 0.28 * len(scene.views) + legend_height
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    figure.text(MARGIN / width, 1 - 0.27 / height, title, fontsize=13, fontweight="bold", va="center")
    figure.text(
        MARGIN / width,
        1 - 0.52 / height,
        shorten(subtitle, 130, placeholder=" ..."),
        fontsize=9,
        color=GREY,
        va="center",
    )
    y = height - 0.85
    for column, name in enumerate(("image", "reference", "prediction")):
        x = MARGIN + column * (COLUMN + 0.08) + COLUMN / 2
        figure.text(x / width, y / height, name, fontsize=11, ha="center", va="center")
    for view in scene.views:
        panel = (extent[view.across] * scale, extent[view.up] * scale)
        y -= 0.28 + panel[1]
        for column in range(3):
            x = MARGIN + column * (COLUMN + 0.08) + (COLUMN - panel[0]) / 2
            axes = figure.add_axes((x / width, y / height, panel[0] / width, panel[1] / height))
            _draw(axes, scene, view, planes, (None, scene.reference, scene.prediction)[column])
        name = "picture" if scene.photograph else view.name
        where = f"{name}, plane {planes[view.through] + 1} of {scene.image.shape[view.through]}"
        figure.text(MARGIN / width, (y + panel[1] + 0.09) / height, where, fontsize=8, color=GREY, va="center")
    figure.legend(
        handles=list(entries), loc="upper left", bbox_to_anchor=(MARGIN / width, (y - 0.18) / height), ncols=columns,
        frameon=False, fontsize=9, handlelength=1.4, columnspacing=1.6, borderpad=0, borderaxespad=0,
    )  # fmt: skip
    return figure


def _cut(array: np.ndarray, view: View, plane: int) -> np.ndarray:
    """Return a plane whose rows run up the screen and whose columns run to its right."""
    flat = np.moveaxis(array, (view.up, view.across, view.through), (0, 1, 2))[..., plane]
    return flat[:, ::-1]


def _draw(axes: Axes, scene: Scene, view: View, planes: tuple[int, int, int], values: np.ndarray | None) -> None:
    low, high = np.percentile(scene.image, (1, 99.5))
    sides = [scene.image.shape[axis] * scene.spacing_mm[axis] for axis in (view.across, view.up)]
    options = {"origin": "lower", "extent": (0, sides[0], 0, sides[1])}
    plane = planes[view.through]
    image = _cut(scene.image, view, plane)
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="bilinear", **options)
    axes.set_axis_off()
    box = axes.get_window_extent()
    if values is None and not scene.photograph:
        _orient(axes, scene, view, planes, sides)
    elif values is not None:
        painted = paint(_cut(values, view, plane), round(box.width), round(box.height))
        axes.imshow(painted, interpolation="nearest", **options)


def _orient(axes: Axes, scene: Scene, view: View, planes: tuple[int, int, int], sides: list[float]) -> None:
    """Add edge letters, where the other planes lie, and on the first view a scale."""
    outline = [withStroke(linewidth=2, foreground="black")]
    shown = LETTERS if axes.get_window_extent().height > 0.6 * DPI else LETTERS[:2]
    for letter, (x, y, side, level) in zip(view.letters, shown, strict=False):
        axes.text(
            x, y, letter, transform=axes.transAxes, color="white", fontsize=9, ha=side, va=level, path_effects=outline
        )
    middle_mm = [(plane + 0.5) * spacing for plane, spacing in zip(planes, scene.spacing_mm, strict=True)]
    axes.axvline(sides[0] - middle_mm[view.across], color="white", alpha=0.35, linewidth=0.6, linestyle=(0, (4, 4)))
    axes.axhline(middle_mm[view.up], color="white", alpha=0.35, linewidth=0.6, linestyle=(0, (4, 4)))
    if view is VIEWS[0]:
        length = 50 if sides[0] > 120 else 10
        start, level = sides[0] * 0.96 - length, sides[1] * 0.05
        axes.plot([start, start + length], [level, level], color="white", linewidth=2, path_effects=outline)
        axes.annotate(
            f"{length // 10} cm", (start + length / 2, level), (0, 3), textcoords="offset points", color="white",
            fontsize=8, ha="center", path_effects=outline,
        )  # fmt: skip


def paint(values: Integer[np.ndarray, "up across"], width: int, height: int) -> Float[np.ndarray, "height width 4"]:
    """Return the colours of a plane at the resolution of the screen: voxels filled faintly, their outlines strongly.

    Args:
        values: As in `Scene.reference`.
        width: Pixels across.
        height: Pixels up.
    """
    rows = np.arange(height) * values.shape[0] // height
    columns = np.arange(width) * values.shape[1] // width
    large = values[rows][:, columns]
    y, x = np.indices(large.shape)
    edge = np.zeros(large.shape, dtype=bool)
    for axis in (0, 1):
        differs = np.diff(large, axis=axis) != 0
        before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
        before[axis], after[axis] = (0, 1), (1, 0)
        edge |= np.pad(differs, before) | np.pad(differs, after)
    # Beyond the palette a class repeats a colour with a striped outline.
    stripe = (large > len(PALETTE)) & ((x + y) // 4 % 2 == 0)
    colours = np.array([to_rgb(colour) for colour in PALETTE])
    painted = np.zeros((*large.shape, 4))
    painted[..., :3] = colours[(large - 1) % len(PALETTE)]
    painted[..., 3] = np.where(large > 0, np.where(edge, np.where(stripe, 0.15, 1.0), 0.42), 0.0)
    unknown = large == UNKNOWN
    painted[unknown] = (0.75, 0.75, 0.75, 0.12)
    painted[unknown & ((x + y) % 14 < 2)] = (0.85, 0.85, 0.85, 0.55)
    return painted


def legend_entries(scene: Scene, labels: Sequence[str], planes: tuple[int, int, int]) -> list[Patch]:
    """Return a patch for each class that the three planes show, and one for what nobody drew."""
    cuts = [_cut(array, view, planes[view.through]) for view in VIEWS for array in (scene.reference, scene.prediction)]
    shown = np.unique(np.concatenate([cut.ravel() for cut in cuts]))
    entries = []
    for value in (int(value) for value in shown if value > 0):
        colour = PALETTE[(value - 1) % len(PALETTE)]
        style = "solid" if value <= len(PALETTE) else "dotted"
        entries.append(
            Patch(facecolor=(*to_rgb(colour), 0.55), edgecolor=colour, linestyle=style, label=labels[value - 1])
        )
    if UNKNOWN in shown:
        entries.append(Patch(facecolor="#DDDDDD", edgecolor="#777777", hatch="////", label="nobody drew here"))
    return entries
