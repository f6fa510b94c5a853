"""The picture of a fingerprint: slices with outlines, intensities, spacings and volumes on one sheet."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_atlas.data.survey.fingerprint import Fingerprint
from lightning_atlas.data.survey.fingerprint_case import CaseFingerprint, Picture

DPI = 140
WIDTH = 13.0
"""Of the sheet, in inches, as are the following."""
PANEL, COLUMNS, TALLEST = 1.94, 6, 1.2
"""Width of a slice, slices in a row, and the most that one is higher than wide."""
TOP, MARGIN = 0.72, 0.4
CAPTION = 0.28
PLOT, GAP = 2.3, 0.65
LEFT_PLOTS = 4.3
BARS = 7.9
"""Where the bars begin, beyond the longest names."""
BAR = 0.19
MOST_BARS, MOST_HISTOGRAMS = 40, 3
LONGEST_NAME = 34
GREY = "#5A5A5A"
MODALITY_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def draw_sheet(fingerprint: Fingerprint) -> Figure:
    """Draw the sheet; slices are shown of the cases that kept one."""
    pictured = [(case.subject, case.picture) for case in fingerprint.cases if case.picture is not None]
    modalities = list(dict.fromkeys(case.modality for case in fingerprint.cases))
    colours = {each: MODALITY_COLOURS[n % len(MODALITY_COLOURS)] for n, each in enumerate(modalities)}
    bars = _most_drawn(fingerprint)
    rows = [pictured[start : start + COLUMNS] for start in range(0, len(pictured), COLUMNS)]
    heights = [max(_panel_height(picture) for _, picture in row) for row in rows]
    upper = TOP + sum(heights) + CAPTION * len(rows) + 0.35
    plots = min(len(modalities), MOST_HISTOGRAMS) + 1
    height = upper + max(plots * (PLOT + GAP), len(bars) * BAR + 0.75)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    _title(figure, fingerprint, height)
    y = height - TOP
    for row, panel in zip(rows, heights, strict=True):
        y -= panel + CAPTION
        for column, (subject, picture) in enumerate(row):
            x = MARGIN + column * (WIDTH - 2 * MARGIN + 0.08) / COLUMNS
            _slice(_axes(figure, x, y, PANEL, panel), picture, subject, fingerprint.names)
    y = height - upper
    for modality in modalities[:MOST_HISTOGRAMS]:
        ours = [case for case in fingerprint.cases if case.modality == modality]
        _histogram(_axes(figure, MARGIN + 0.3, y - PLOT, LEFT_PLOTS, PLOT), ours, modality, colours[modality])
        y -= PLOT + GAP
    _spacings(_axes(figure, MARGIN + 0.3, y - PLOT, LEFT_PLOTS, PLOT), fingerprint.cases, colours)
    if bars:
        tall = len(bars) * BAR
        _volumes(_axes(figure, BARS, height - upper - tall, WIDTH - BARS - MARGIN - 0.5, tall), fingerprint, bars)
    return figure


def write_sheet(fingerprint: Fingerprint, path: Path) -> None:
    """Write the sheet as a PNG."""
    draw_sheet(fingerprint).savefig(path)


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes((x / whole_width, y / whole_height, width / whole_width, height / whole_height))


def _title(figure: Figure, fingerprint: Fingerprint, height: float) -> None:
    told = fingerprint.summary
    counts = [f"{name} {n}" for key in ("modalities", "orientations") for name, n in told[key].items()]
    title = f"{told['scans']} scans of {told['patients']} patients"
    figure.text(MARGIN / WIDTH, 1 - 0.3 / height, title, fontsize=14, fontweight="bold", va="center")
    line = f"{', '.join(counts)}; {len(fingerprint.names)} structures; {len(fingerprint.outliers)} outliers"
    figure.text(MARGIN / WIDTH, 1 - 0.56 / height, line, fontsize=9, color=GREY, va="center")


def _sides(picture: Picture) -> tuple[float, float]:
    """Return height and width in millimetres."""
    high, wide = (side * spacing for side, spacing in zip(picture.image.shape, picture.spacing_mm, strict=True))
    return high, wide


def _panel_height(picture: Picture) -> float:
    high, wide = _sides(picture)
    return PANEL * min(high / wide, TALLEST)


def _slice(axes: Axes, picture: Picture, title: str, names: Sequence[str]) -> None:
    high, wide = _sides(picture)
    options = {"origin": "lower", "extent": (0, wide, 0, high), "aspect": "equal", "interpolation": "nearest"}
    axes.imshow(picture.image, cmap="gray", vmin=0, vmax=255, **options)
    numbers = [names.index(name) if name in names else 0 for name in picture.names]
    axes.imshow(outlines(picture, numbers), **options)
    axes.set_axis_off()
    axes.set_anchor("N")
    axes.set_title(_shortened(title, 26), fontsize=8, pad=3)


def outlines(picture: Picture, numbers: Sequence[int]) -> Float[np.ndarray, "rows columns 4"]:
    """Return the outlines of the structures in colours.

    Args:
        picture: The slice.
        numbers: For each structure of the case the number of its colour.
    """
    enlarged = max(1, round(PANEL * DPI / max(picture.structures.shape)))  # a line is as thin as a pixel of the sheet
    large = picture.structures.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    edge = np.zeros(large.shape, dtype=bool)
    edge[1:] |= large[1:] != large[:-1]
    edge[:-1] |= large[:-1] != large[1:]
    edge[:, 1:] |= large[:, 1:] != large[:, :-1]
    edge[:, :-1] |= large[:, :-1] != large[:, 1:]
    painted = np.array([(0.0, 0.0, 0.0, 0.0), *map(colour, numbers)])[large]
    painted[..., 3] *= edge
    return painted


def colour(number: int) -> tuple[float, float, float, float]:
    """Return the colour of the structure of this number: twenty, over and over."""
    red, green, blue, opacity = colormaps["tab20"](number % 20)
    return red, green, blue, opacity


def _histogram(axes: Axes, cases: Sequence[CaseFingerprint], modality: str | None, shade: str) -> None:
    for case in cases:
        channel = next(iter(case.channels.values()))
        low, high = channel.everywhere.percentiles[1], channel.everywhere.percentiles[-2]
        edges = np.linspace(low, max(high, low + 1e-6), len(channel.histogram) + 1)
        axes.stairs(np.array(channel.histogram) * 100, edges, color=shade, alpha=max(0.15, 1 / len(cases) ** 0.5))
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.02)
    _label(axes, f"intensities of {modality or 'scans'}, a line each ({len(cases)})", "intensity", "% of voxels")


def _spacings(axes: Axes, cases: Sequence[CaseFingerprint], colours: dict[str | None, str]) -> None:
    for modality, shade in colours.items():
        ours = np.array([case.spacing_mm for case in cases if case.modality == modality])
        axes.scatter(ours[:, 0], ours[:, 2], color=shade, s=28, alpha=0.6, label=modality or "not declared", zorder=2)
    across, up = (1.15 * max(case.spacing_mm[axis] for case in cases) for axis in (0, 2))
    axes.plot([0, min(across, up)], [0, min(across, up)], color="#BBBBBB", linewidth=0.8, zorder=1)
    axes.set_xlim(0, across)
    axes.set_ylim(0, up)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    _label(axes, "voxels; on the line they are as high as wide", "along i, mm", "along k, mm")


def _volumes(axes: Axes, fingerprint: Fingerprint, bars: Sequence[str]) -> None:
    told = fingerprint.summary["structures"]
    places = np.arange(len(bars))
    volumes = np.array([told[name]["volume_ml"] for name in bars])
    shades = [colour(fingerprint.names.index(name)) for name in bars]
    left = volumes[:, 0].min() / 2
    axes.barh(places, volumes[:, 1] - left, left=left, height=0.72, color=shades)
    axes.hlines(places, volumes[:, 0], volumes[:, 2], color="#333333", linewidth=0.9)
    axes.set_xscale("log")
    axes.set_xlim(left, volumes.max() * 1.5)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_yticks(places, [_shortened(name, LONGEST_NAME) for name in bars], fontsize=8)
    for place, name in enumerate(bars):
        cases = f"{told[name]['present_in']} of {told[name]['drawn_in']}"
        axes.text(1.01, place, cases, transform=axes.get_yaxis_transform(), fontsize=7, color=GREY, va="center")
    left_out = len(fingerprint.names) - len(bars)
    more = f"; {left_out} more in the JSON" if left_out else ""
    _label(axes, f"volume: median, least, largest; in how many scans{more}", "ml", "")
    axes.tick_params(axis="y", length=0)


def _label(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _most_drawn(fingerprint: Fingerprint) -> list[str]:
    """Return the structures that most scans have, in the order of their volumes."""
    told = {name: each for name, each in fingerprint.summary["structures"].items() if each["volume_ml"]}
    often = sorted(told, key=lambda name: -told[name]["present_in"])[:MOST_BARS]
    return sorted(often, key=lambda name: -told[name]["volume_ml"][1])


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2]}.."
