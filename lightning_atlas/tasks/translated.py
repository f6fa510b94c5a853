"""Predictions of weights that know other classes than the data: read in the data's, and scored there."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from lightning_atlas.tasks.voxels import DiceTask, Probabilities, VoxelTask
from lightning_atlas.types import Batch, Logits, Prediction

Translate = Callable[[Bool[Tensor, "rows classes"]], Bool[Tensor, "rows others"]]
"""Takes a table of predictions from the classes of the weights to those of the data."""


class TranslatedTask(DiceTask):
    """Scores what a network predicts in its own classes against data with others; nothing is learned.

    Args:
        task: Of the weights.
        classes: Of the weights.
        translate: Reads a table in the data's classes.
    """

    def __init__(self, task: VoxelTask, classes: Sequence[str], translate: Translate) -> None:
        super().__init__()
        self.task = task
        self.classes = tuple(classes)
        self.translate = translate

    def outputs(self, classes: Sequence[str]) -> int:
        """Return the number of the weights' outputs, whatever the data tell apart."""
        return self.task.outputs(self.classes)

    def setup(self, classes: Sequence[str], mirrored_axes: Sequence[str] = (), overlapping: bool = False) -> None:
        """Make the metrics of the data's classes."""
        self.task.setup(self.classes, mirrored_axes, self.task.overlapping)
        self.score(len(classes))

    def loss(self, logits: Tensor | Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Refuse to learn.

        Raises:
            ValueError: Always: another network has to be sized for the data's classes.
        """
        raise ValueError("these weights are tested as they are; to train from them, name them in model.weights and fit")

    def infer(self, network: nn.Module, image: Tensor) -> Logits:
        """Return the logits of whole images, in the weights' outputs."""
        return self.task.infer(network, image)

    def decode(self, logits: Logits) -> Prediction:
        """Return what the weights predict, in the data's classes."""
        rows, inside = self.task.decode(logits)
        return Prediction(rows, torch.stack([self.translate(table) for table in inside]))

    def probabilities(self, logits: Logits) -> Probabilities:
        """Return the probability of each of the data's classes: of several exclusive classes of the weights their sum.

        Of several that overlap it is the highest.
        """
        known = self.task.probabilities(logits)
        alone = torch.eye(len(self.classes), dtype=torch.bool, device=logits.device)
        parts = self.translate(alone).T
        if self.task.overlapping:
            return torch.stack([(known * part[:, None, None, None]).amax(1) for part in parts], 1)
        return torch.einsum("boijk,co->bcijk", known, parts.to(known.dtype))
