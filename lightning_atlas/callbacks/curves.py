"""The learning curves: training loss, validation Dice and learning rate over the optimizer steps."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from textwrap import shorten
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5A5A5A"


@dataclass
class History:
    """What a fit showed at its steps. Of long runs every second step is dropped, again and again.

    Args:
        steps: Optimizer steps done.
        losses: Training loss at these; tensors until somebody reads them, so that no step waits for the GPU.
        rates: Learning rates at these, one for each group of parameters.
        validated: Optimizer steps done at each validation.
        dice: Mean Dice of each validation, or the score that stands for all where whole scans are predicted.
        stride: Only each so many-th step is kept.
        score: Name of the score.
    """

    LIMIT = 2000

    steps: list[int] = field(default_factory=list)
    losses: list[Tensor | float] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)
    stride: int = 1
    score: str = "dice"

    def add_step(self, step: int, loss: Tensor | float, rates: list[float]) -> None:
        """Take a training step, unless it was taken already or is between those that are kept."""
        if step % self.stride or step in self.steps[-1:]:
            return
        self.steps.append(step)
        self.losses.append(loss)
        self.rates.append(rates)
        if len(self.steps) >= self.LIMIT:
            self.stride *= 2
            kept = [place for place, each in enumerate(self.steps) if each % self.stride == 0]
            self.steps = [self.steps[place] for place in kept]
            self.losses = [self.losses[place] for place in kept]
            self.rates = [self.rates[place] for place in kept]

    def add_validation(self, step: int, dice: float) -> None:
        """Take the mean Dice of a validation."""
        self.validated.append(step)
        self.dice.append(dice)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, fit for a checkpoint."""
        self.losses = [float(loss) for loss in self.losses]
        return asdict(self)


def smooth(values: Sequence[float], span: float) -> Float[np.ndarray, " values"]:
    """Return the exponential mean whose weight falls to 1/e over `span` values, free of the pull of its start."""
    keep = float(np.exp(-1 / span))
    total, weight, means = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return np.array(means)


def learning_curves(history: History, title: str, subtitle: str = "") -> Figure:
    """Draw loss, Dice and learning rate over the same steps.

    Args:
        history: What the fit showed.
        title: Stands above all.
        subtitle: Stands below the title, smaller.
    """
    figure = Figure(figsize=(8.0, 6.6), dpi=150, facecolor="white")
    loss, dice, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
    figure.subplots_adjust(left=0.09, right=0.97, top=0.88, bottom=0.08, hspace=0.14)
    figure.text(0.09, 0.955, title, fontsize=13, fontweight="bold", va="center")
    figure.text(0.09, 0.918, shorten(subtitle, 95, placeholder=" ..."), fontsize=9, color=GREY, va="center")
    losses = [float(value) for value in history.losses]
    span = max(1.0, len(losses) / 30)
    loss.plot(history.steps, losses, color=BLUE, alpha=0.3, linewidth=0.7, label="each step")
    loss.plot(history.steps, smooth(losses, span), color=BLUE, linewidth=1.8, label="smoothed")
    loss.legend(frameon=False, fontsize=8, loc="upper right")
    dice.plot(history.validated, history.dice, color=ORANGE, marker="o", markersize=4, linewidth=1.8, clip_on=False)
    if history.score in ("dice", "accuracy", "auroc", "froc"):
        dice.set_ylim(0, 1)
    for step, value in list(zip(history.validated, history.dice, strict=True))[-1:]:
        dice.annotate(f"{value:.3f}", (step, value), (0, 7), textcoords="offset points", fontsize=9, ha="right")
    if not history.dice:
        dice.text(0.5, 0.5, "no validation", transform=dice.transAxes, ha="center", va="center", color=GREY)
    _rates(rate, history)
    score = "Dice" if history.score == "dice" else history.score
    names = ("training loss", f"validation {score}", "learning\nrate")
    for axes, name in zip((loss, dice, rate), names, strict=True):
        axes.set_ylabel(name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    rate.set_xlabel("optimizer steps", fontsize=9)
    rate.set_xlim(left=0)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _rates(axes: Axes, history: History) -> None:
    groups = list(zip(*history.rates, strict=True)) if history.rates else []
    for group in groups:
        axes.plot(history.steps, group, color=GREY, linewidth=0.8, alpha=0.8)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.yaxis.get_offset_text().set_fontsize(8)
    if len(groups) > 1:
        axes.text(
            0.995, 0.95, f"{len(groups)} groups of parameters", transform=axes.transAxes, fontsize=8, color=GREY,
            ha="right", va="top",
        )  # fmt: skip
