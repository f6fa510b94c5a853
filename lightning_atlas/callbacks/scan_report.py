"""What a report says where whole scans are predicted: scores with intervals, and the prediction of each case."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_atlas.callbacks.overlay import PALETTE
from lightning_atlas.callbacks.tables import write_rows
from lightning_atlas.scan_metrics import MANY, Kind, ScanResult

GREY = "#5A5A5A"
SHOWN = 6
"""Values that the picture has room for."""
READ = 30
"""Classes whose names and counts can be read in a picture."""
LIKELIEST = 5
"""Classes that a table says of each case, where there are more than `MANY`."""


def predicted_cells(kind: Kind, names: Sequence[str], values: Float[Tensor, " outputs"]) -> dict[str, Any]:
    """Return what a table says of one prediction: the likeliest class and the probabilities, or the values."""
    numbers = [float(f"{value:.6g}") for value in values.tolist()]
    if kind == "values":
        return dict(zip(names, numbers, strict=True))
    if kind == "class" and len(names) > MANY:
        first = values.argsort(descending=True)[:LIKELIEST].tolist()
        return {"class": names[first[0]], "likeliest": "; ".join(f"{names[each]} {numbers[each]:g}" for each in first)}
    chances = {f"p({name})": number for name, number in zip(names, numbers, strict=True)}
    if kind == "class":
        return {"class": names[int(values.argmax())], **chances}
    return {"labels": ";".join(name for name, number in zip(names, numbers, strict=True) if number > 0.5), **chances}


def case_rows(result: ScanResult, names: Sequence[str], subjects: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each case: what is true, then what was predicted; empty where the truth is not known."""
    rows = []
    for index, values, target in zip(result.index.tolist(), result.values, result.target, strict=True):
        if result.kind == "class":
            known = {"true class": names[int(target)] if int(target) >= 0 else ""}
        else:
            numbers = zip(names, target.tolist(), strict=True)
            known = {f"true {name}": "" if math.isnan(number) else f"{number:.6g}" for name, number in numbers}
        rows.append({"subject": subjects[index], **known, **predicted_cells(result.kind, names, values)})
    return rows


def dataset_table(datasets: Mapping[str, ScanResult]) -> str:
    """Return a line for each dataset, in ASCII."""
    measure = next(iter(datasets.values())).headline
    width = max(len("dataset"), *(len(name) for name in datasets))
    lines = [f"{'dataset':{width}}  {measure:>9}  {'cases':>5}"]
    for name, result in datasets.items():
        value = "-" if math.isnan(result.mean) else f"{result.mean:.3f}"
        lines.append(f"{name:{width}}  {value:>9}  {len(result.index):>5}")
    return "\n".join(lines)


def write_scans(folder: Path, prefix: str, result: ScanResult, names: Sequence[str], subjects: Sequence[str]) -> None:
    """Write the scores and the prediction of each case as two tables.

    Args:
        folder: Of the run.
        prefix: Of the files' names.
        result: Of a test or a validation.
        names: Of the classes, labels or values.
        subjects: Of the split, in the order of their index.
    """
    write_rows(folder / f"{prefix}scores.csv", result.rows(names))
    write_rows(folder / f"{prefix}cases.csv", case_rows(result, names, subjects))


def predictions_figure(result: ScanResult, names: Sequence[str], title: str, subtitle: str = "") -> Figure:
    """Draw what was predicted over what is true: how often each class for each other, or each case's values.

    Args:
        result: Of a test or a validation.
        names: Of the classes, labels or values.
        title: Stands above all.
        subtitle: Stands below the title, smaller.
    """
    shown = names if result.kind != "values" else names[:SHOWN]
    panels = len(shown) if result.kind == "values" else 1
    size = (4.2 * panels + 0.6, 5.0) if result.kind == "values" else (6.6, 5.6)
    figure = Figure(figsize=size, dpi=150, facecolor="white", layout="constrained")
    figure.suptitle("\n".join([title, shorten(subtitle, int(size[0] * 13), placeholder=" ...")]), fontsize=9)
    if result.kind == "class":
        _confusions(figure.add_subplot(), result, names)
    elif result.kind == "labels":
        _chances(figure.add_subplot(), result, names)
    else:
        for place, name in enumerate(shown):
            _scatter(figure.add_subplot(1, panels, place + 1), result, place, name)
    return figure


def _confusions(axes: Axes, result: ScanResult, names: Sequence[str]) -> None:
    known = result.target >= 0
    pairs = result.target[known] * len(names) + result.values[known].argmax(1)
    counts = torch.bincount(pairs, minlength=len(names) ** 2).view(len(names), len(names))
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true (cases)", fontsize=9)
    if len(names) > READ:
        return
    for row, column in ((row, column) for row in range(len(names)) for column in range(len(names))):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)


def _chances(axes: Axes, result: ScanResult, names: Sequence[str]) -> None:
    for place in range(len(names)):
        truth, values = result.columns()[:, place], result.values[:, place]
        for has, colour, shift in ((0, PALETTE[4], -0.15), (1, PALETTE[5], 0.15)):
            some = values[truth == has].tolist()
            axes.plot(some, [place + shift] * len(some), "|", color=colour, markersize=9)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(-0.02, 1.02)
    axes.axvline(0.5, color=GREY, linewidth=0.6)
    axes.set_xlabel("probability (upper: cases with the label, lower: without)", fontsize=9)


def _scatter(axes: Axes, result: ScanResult, place: int, name: str) -> None:
    truth, values = result.target[:, place], result.values[:, place]
    known = ~truth.isnan()
    ends = torch.cat([truth[known], values[known]])
    if len(ends):
        axes.plot([ends.min(), ends.max()], [ends.min(), ends.max()], color=GREY, linewidth=0.8)
    axes.plot(truth[known].tolist(), values[known].tolist(), "o", color=PALETTE[4], markersize=4)
    axes.set_xlabel(f"true {name}", fontsize=9)
    axes.set_ylabel(f"predicted {name}", fontsize=9)
    axes.tick_params(labelsize=8)
