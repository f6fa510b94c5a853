"""A class for every voxel, or none."""

import math

import torch
from torch import Tensor

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.losses import Losses, softmax_losses
from lightning_atlas.tasks.voxels import Probabilities, VoxelTask, smallest_integer
from lightning_atlas.types import Batch, Label, Logits, Prediction


class Segmentation(VoxelTask):
    """Puts every voxel in one of the classes or in the background (softmax).

    Args:
        window: How whole volumes are predicted.
        cross_entropy: Weight of the cross-entropy in the loss.
        dice: Weight of the Dice loss in the loss.
        marginal_dice: Weight of the Dice loss in which classes that a case does not tell apart are merged.
        threshold: A voxel is in the likeliest class only where its probability is above this, else background.
        deep_supervision: Weights of the network's outputs from the finest down, for networks that return several in
            training; divided by their sum. `null`: each half of the finer one's.
    """

    misfit = (
        "the classes of the data may overlap (exclusive: false), but Segmentation puts a voxel in one class (softmax): "
        "set model.init_args.task.class_path: MultiLabelSegmentation, or let them exclude each other: "
        "data.init_args.classes.init_args.exclusive: true"
    )

    def __init__(
        self,
        window: SlidingWindow,
        cross_entropy: float = 1.0,
        dice: float = 1.0,
        marginal_dice: float = 0.0,
        threshold: float = 0.0,
        deep_supervision: list[float] | None = None,
    ) -> None:
        weights = {"cross_entropy": cross_entropy, "dice": dice, "marginal_dice": marginal_dice}
        super().__init__(window, weights, deep_supervision)
        if not 0 <= threshold < 1:
            raise ValueError(f"Segmentation: threshold is a probability from 0 to below 1, found {threshold}")
        self.threshold = threshold

    def terms(self, logits: Logits, label: Label, batch: Batch) -> Losses:
        """Return the cross-entropy and the two Dice losses of each case."""
        return softmax_losses(logits, label, batch["states"], batch["drawn"], batch["background"])

    def probabilities(self, logits: Logits) -> Probabilities:
        """Return the probability of each class in each voxel, without the background's."""
        return logits.softmax(1)[:, 1:]

    def decode(self, logits: Logits) -> Prediction:
        """Return the likeliest output: row 0 is the background, row c+1 the class c."""
        outputs = logits.shape[1]
        inside = torch.eye(outputs, dtype=torch.bool, device=logits.device)[:, 1:]
        rows: Tensor = logits.argmax(1).to(smallest_integer(outputs - 1))
        if self.threshold:
            rows[logits.amax(1) - logits.logsumexp(1) <= math.log(self.threshold)] = 0
        return Prediction(rows, inside.expand(len(logits), -1, -1))
