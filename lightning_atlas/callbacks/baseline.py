"""What a score is worth: the copy of the nearest drawn plane."""

import torch
from jaxtyping import Integer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_atlas.callbacks.seams import case_data
from lightning_atlas.metrics import CaseDice, DiceResult
from lightning_atlas.types import Batch, Prediction


def nearest_plane(label: Integer[Tensor, "i j k"]) -> Integer[Tensor, "i j k"] | None:
    """Return a label in which each plane along k copies the nearest one that was drawn (of two, the lower).

    Returns:
        Rows of the label's table; `None` where no plane was drawn.
    """
    drawn = (label != 0).flatten(0, 1).any(dim=0).nonzero().flatten()
    if len(drawn) == 0:
        return None
    planes = torch.arange(label.shape[2], device=label.device)
    nearest = drawn[(planes[:, None] - drawn[None, :]).abs().argmin(dim=1)]
    return label[:, :, nearest]


class NearestPlaneBaseline(Callback):
    """Score the test cases as if each plane were a copy of the nearest drawn plane of the first training case.

    A network that was trained on a few drawn planes has learned something only where it does better than this.
    """

    NAME = "copy of the nearest drawn plane"

    def __init__(self) -> None:
        self.result: DiceResult | None = None
        self.note = ""
        self._copy: Prediction | None = None
        self._metric: CaseDice | None = None
        self._skipped = 0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the copy."""
        self.result, self.note, self._skipped = None, "", 0
        case = case_data(trainer).whole("train", 0)
        copy = nearest_plane(case["label"][0])
        # What is not known to be in a class is not predicted in it.
        self._copy = None if copy is None else Prediction(copy[None], case["states"] == 1)
        self._metric = CaseDice(case["states"].shape[2]).to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the copy on a test case that has its grid."""
        label, copy = batch["label"], self._copy
        if copy is None or self._metric is None or label.shape[1:] != copy.rows.shape[1:]:
            self._skipped += len(label)
            return
        rows, inside = (each.to(label.device) for each in copy)
        prediction = Prediction(rows.expand_as(label), inside.expand(len(label), -1, -1))
        voxel_ml = batch["spacing_mm"].prod(dim=1) / 1000
        self._metric.update(prediction, label, batch["states"], batch["drawn"], batch["index"], voxel_ml)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the result, before `RunReport` asks for it."""
        skipped = trainer.strategy.reduce(torch.tensor(self._skipped, device=pl_module.device), reduce_op="sum")
        if int(skipped) > 0 or self._metric is None:
            self.note = "no training plane was drawn, or test cases have another grid than the first training case"
        else:
            self.result = self._metric.compute()
        self._copy = self._metric = None
