"""The learning rate of each stage over the whole run, shown before its first step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_atlas.callbacks.curves import BLUE, GREY
from lightning_atlas.callbacks.pictures import publish
from lightning_atlas.callbacks.seams import adapted


class RatesPicture(Callback):
    """Draw before the first step how fast each stage will move at each step: `rates.png`, and in TensorBoard.

    TensorBoard gets the table of the stages too. A schedule that waits for a metric is drawn as if it never acted, and
    rates that an adaptation measures during the run as if they were 1.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        log_dir = trainer.log_dir  # asks all processes
        module = adapted(pl_module)
        plan, choices = module.plan, (module.optimizer, module.schedule)
        if log_dir is None or plan is None or getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            return
        publish(trainer, rates_picture(*plan.course(*choices), plan.fresh), Path(log_dir) / "rates.png")
        table = "\n".join(f"    {line}" for line in plan.table(*choices).splitlines())  # as it stands, in Markdown
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("stages", table, trainer.global_step)


def rates_picture(
    steps: Sequence[int], rates: Mapping[str, Sequence[float]], fresh: Sequence[str] | set[str] = (), subtitle: str = ""
) -> Figure:
    """Draw a strip for each stage, the input on top; all strips have one scale, and the peak stands at their end.

    Args:
        steps: Optimizer steps.
        rates: Learning rate of each stage at these.
        fresh: Stages with parameters that no weights gave.
        subtitle: Stands below the title, smaller.
    """
    height = 1.15 + 0.34 * len(rates)
    figure = Figure(figsize=(8.0, height), dpi=150, facecolor="white")
    axes = figure.subplots()
    figure.subplots_adjust(left=0.2, right=0.86, top=1 - 0.62 / height, bottom=0.48 / height)
    figure.text(0.02, 1 - 0.22 / height, "learning rate of each stage", fontsize=12, fontweight="bold", va="center")
    figure.text(
        0.02, 1 - 0.45 / height, shorten(subtitle, 110, placeholder=" ..."), fontsize=8, color=GREY, va="center"
    )
    highest = max((max(course) for course in rates.values()), default=0.0) or 1.0
    for row, course in enumerate(rates.values()):
        base = len(rates) - 1 - row
        axes.axhline(base, color="#DDDDDD", linewidth=0.6)
        axes.fill_between(steps, base, [base + 0.85 * rate / highest for rate in course], color=BLUE, linewidth=0)
        told, tone = (f"{max(course):.2e}", "black") if max(course) else ("at rest", GREY)
        axes.text(1.01, base + 0.2, told, transform=axes.get_yaxis_transform(), fontsize=8, color=tone)
    axes.text(1.01, len(rates), "peak", transform=axes.get_yaxis_transform(), fontsize=8, color=GREY)
    names = [f"{name} (fresh)" if name in fresh else name for name in rates]
    axes.set_yticks([base + 0.3 for base in reversed(range(len(rates)))], names, fontsize=8)
    axes.set_ylim(-0.1, len(rates))
    axes.set_xlim(min(steps), max([*steps, min(steps) + 1]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("optimizer steps", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure
