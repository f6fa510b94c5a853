"""Predictions of whole scans as a table."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_atlas.callbacks.prediction import whole
from lightning_atlas.callbacks.progress import say
from lightning_atlas.callbacks.scan_report import predicted_cells
from lightning_atlas.callbacks.seams import scored
from lightning_atlas.callbacks.tables import write_rows
from lightning_atlas.types import Batch, ScanPrediction

TABLE = "predictions.csv"


class PredictionTable(Callback):
    """Write the predictions of whole scans as `predictions.csv`, a row for each scan in the order of the names.

    Args:
        output: Folder of the table; made if it is not there.
        overwrite: Replace a table that is there; otherwise it is an error, before anything is computed.
    """

    def __init__(self, output: Path, overwrite: bool = False) -> None:
        self.output = Path(output)
        self.overwrite = overwrite
        self._rows: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the file before the first scan is computed.

        Raises:
            ValueError: It is there already, or its folder cannot be one.
        """
        self._rows = []
        existing = (self.output / TABLE).exists()
        trainer.strategy.barrier("table of predictions")  # every process looks before any process writes
        if existing and not self.overwrite:
            raise ValueError(f"{self.output / TABLE} is there already: take another --output, or say --overwrite")
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"{self.output} is a file; --output takes a folder")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ScanPrediction,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of a batch."""
        contract = scored(pl_module).contract
        for subject, values in zip(batch["subject"], outputs.values.cpu(), strict=True):
            cells = predicted_cells(contract.predicts, contract.classes, values)  # type: ignore[arg-type]
            self._rows.append({"subject": subject, **cells})
            if trainer.is_global_zero:
                say(f"predicted {subject}: {next(iter(cells.values()))}")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all processes, write them, and say where.

        Raises:
            ValueError: No scan was found.
        """
        rows = self._gathered(trainer)
        if not rows:
            raise ValueError("nothing was predicted: no scan was found in the folder given as --input")
        if not trainer.is_global_zero:
            return
        with whole(self.output / TABLE) as partial:
            write_rows(partial, sorted(rows, key=lambda row: str(row["subject"])))
        say(f"wrote {len(rows)} predictions to {self.output / TABLE}")

    def _gathered(self, trainer: Trainer) -> list[dict[str, Any]]:
        if trainer.world_size == 1:
            return self._rows
        parts: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, self._rows)
        return [row for part in parts for row in part]
