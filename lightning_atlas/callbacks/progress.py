"""One progress bar whose end is the end of the run."""

import math
import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm, TQDMProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT


def say(text: str) -> None:
    """Print above a running progress bar, in whatever characters standard output can show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    Tqdm.write(text.encode(encoding, errors="replace").decode(encoding), file=sys.stdout)


def run_length(trainer: Trainer) -> int | None:
    """Return the optimizer steps of the whole fit, as the module states them; `None` when a run has no known end."""
    stated = getattr(trainer.lightning_module, "total_steps", None)
    if isinstance(stated, int):
        return stated
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and not math.isinf(batches):
        limits.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
    return min(limits, default=None)


class WholeRunProgress(TQDMProgressBar):
    """Show the whole run in one bar: steps done, time to its end, loss and Dice.

    Where standard output is no terminal, a line stands for each tenth of the run and for each validation.

    Args:
        refresh_rate: Steps between two updates; 0 shows nothing.
    """

    LINES = 10

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._shown_step = 0

    @property
    def is_enabled(self) -> bool:
        """Whether the bar is shown."""
        return super().is_enabled and sys.stdout.isatty()

    @property
    def prints_lines(self) -> bool:
        """Whether lines take the place of the bar."""
        return super().is_enabled and not sys.stdout.isatty()

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar, also after the bar was closed."""
        say(sep.join(map(str, args)))

    def init_train_tqdm(self) -> Tqdm:
        """Return a bar that ends with the run, and starts where a resumed run does."""
        return Tqdm(
            desc="fit",
            total=run_length(self.trainer),
            initial=self.trainer.global_step,
            unit=" steps",
            disable=self.is_disabled,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,
            miniters=1,
            bar_format=self.BAR_FORMAT,
        )

    def init_validation_tqdm(self) -> Tqdm:
        """Return a bar that is not shown during a fit."""
        return Tqdm(disable=True) if self.trainer.state.fn == "fit" else super().init_validation_tqdm()

    def on_train_start(self, *_: Any) -> None:
        """Forget the bar of the sanity check."""
        self._train_progress_bar = None
        self._shown_step = self.trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the bar with the first epoch only: what other callbacks measure before it is no part of its rate."""
        if self._train_progress_bar is None:
            self.train_progress_bar = self.init_train_tqdm()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the bar run on."""

    def on_train_end(self, *_: Any) -> None:
        """Leave the bar as it stands."""
        if self._train_progress_bar is not None:
            self.train_progress_bar.close()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Move on to the step that was done."""
        step, total = trainer.global_step, run_length(trainer)
        if self.is_enabled and (step % self.refresh_rate == 0 or step == total):
            self.train_progress_bar.set_postfix_str(_figures(trainer), refresh=False)
            self.train_progress_bar.update(step - self.train_progress_bar.n)
        if self.prints_lines and total and step * self.LINES // total > self._shown_step * self.LINES // total:
            self._shown_step = step
            say(f"step {step} of {total}: {_figures(trainer)}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the bar waits for."""
        super().on_validation_start(trainer, pl_module)
        self._describe(trainer, "validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the new Dice."""
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._describe(trainer, "fit")
        if self.prints_lines:
            say(f"step {trainer.global_step} of {run_length(trainer)}, validated: {_figures(trainer)}")

    def _describe(self, trainer: Trainer, doing: str) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.is_enabled:
            self.train_progress_bar.set_description_str(doing, refresh=False)
            self.train_progress_bar.set_postfix_str(_figures(trainer))


def _figures(trainer: Trainer) -> str:
    metrics = trainer.callback_metrics
    validated = getattr(trainer.lightning_module, "results", {}).get("val")
    score = getattr(validated, "headline", "dice")
    name = "Dice" if score == "dice" else score
    shown = {"loss": metrics.get("train/loss"), f"val {name}": metrics.get(f"val/{score}")}
    return ", ".join(f"{name} {float(value):.3f}" for name, value in shown.items() if value is not None)
