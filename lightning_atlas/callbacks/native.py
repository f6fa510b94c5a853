"""Scores on the scans' own grids: what a user of the predictions gets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_atlas.callbacks.progress import say
from lightning_atlas.callbacks.report import write_cases, write_scores
from lightning_atlas.callbacks.seams import VoxelData, case_data, scored
from lightning_atlas.metrics import CaseDice, DiceResult
from lightning_atlas.types import Batch, Prediction


class FileReferences(VoxelData, Protocol):
    """A data module that can read labels on the grid of their files."""

    def reference(self, subject: str) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return rows, the two tables of a batch for them, and the volume of a voxel in ml."""
        ...


class NativeScores(Callback):
    """Score the test cases on their own grids too, against labels that were never resampled.

    The table of the run itself is on the network's grid, which is coarser for most scans. Here every prediction goes
    back to the grid of its file, as `predict` writes it, and is compared with the labels as they lie on disk.
    """

    def __init__(self) -> None:
        self.result: DiceResult | None = None
        self._metric: CaseDice | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget former scores."""
        self.result = None
        self._metric = CaseDice(len(scored(pl_module).contract.classes)).to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Compare each case with its file."""
        data = cast(FileReferences, case_data(trainer))
        cases = zip(*outputs["prediction"], batch["subject"], batch["index"], strict=True)
        for rows, inside, subject, index in cases:
            restored = data.restore(rows, subject).data
            label, states, drawn, voxel_ml = data.reference(subject)
            label, states, drawn = (each.to(pl_module.device)[None] for each in (label, states, drawn))
            prediction = Prediction(restored.to(pl_module.device), inside.to(pl_module.device)[None])
            volume = torch.tensor([voxel_ml], device=pl_module.device)
            if self._metric is not None:
                self._metric.update(prediction, label, states, drawn, index[None], volume)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the result of all processes, and log its mean as `test/native_dice`."""
        if self._metric is not None:
            self.result, self._metric = self._metric.compute(), None
            if self.result.mean == self.result.mean:
                pl_module.log("test/native_dice", self.result.mean, sync_dist=True)  # equal on all ranks already

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table, and write it beside the run's own."""
        log_dir = trainer.log_dir  # asks all processes
        if self.result is None or not trainer.is_global_zero:
            return
        classes: Sequence[str] = scored(pl_module).contract.classes
        say(f"\non the scans' own grids:\n\n{self.result.table(classes)}")
        if log_dir is not None:
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_scores(folder / "native_scores.csv", self.result, classes)
            write_cases(folder / "native_cases.csv", self.result, classes, case_data(trainer).subjects("test"))
