"""Which class a whole scan is of, or which labels it has."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.networks.pooled import Pooling
from lightning_atlas.scan_metrics import Kind
from lightning_atlas.tasks.scans import ScanLogits, ScanTask
from lightning_atlas.types import ScanPrediction

UNKNOWN = -1
"""Number of the class of a case of which nobody knows it."""


class Classification(ScanTask):
    """Puts a whole scan in one of the classes (softmax over pooled features of the encoder); needs `data.targets`.

    A case whose class is not known teaches nothing and is not scored.

    Args:
        window: Windows over whose logits a whole scan's are averaged; `null` shows the network the whole scan at once.
        pooling: What is kept of each feature: its `mean` over the grid, its `max`imum, or `both`.
        dropout: Probability with which a pooled feature is dropped in training.
        label_smoothing: Share of each target that is spread evenly over all classes.
    """

    predicts: Kind = "class"
    least_outputs = 2

    def __init__(
        self,
        window: SlidingWindow | None = None,
        pooling: Pooling = "both",
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(window, pooling, dropout)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"Classification: label_smoothing is a share from 0 to below 1, found {label_smoothing}")
        self.label_smoothing = label_smoothing

    def case_losses(self, logits: ScanLogits, target: Int64[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the cross-entropy of each case."""
        return F.cross_entropy(
            logits.float(), target, ignore_index=UNKNOWN, reduction="none", label_smoothing=self.label_smoothing
        )

    def decode(self, logits: ScanLogits) -> ScanPrediction:
        """Return the probability of each class."""
        return ScanPrediction(logits.float().softmax(1))


class MultiLabelClassification(ScanTask):
    """Says of a whole scan and of each label whether the scan has it (sigmoid over pooled features of the encoder).

    Needs `data.targets` of kind `labels`. A label that is not known of a case teaches nothing there and is not scored.

    Args:
        window: Windows over whose logits a whole scan's are averaged; `null` shows the network the whole scan at once.
        pooling: What is kept of each feature: its `mean` over the grid, its `max`imum, or `both`.
        dropout: Probability with which a pooled feature is dropped in training.
    """

    predicts: Kind = "labels"

    def __init__(self, window: SlidingWindow | None = None, pooling: Pooling = "both", dropout: float = 0.0) -> None:
        super().__init__(window, pooling, dropout)

    def case_losses(self, logits: ScanLogits, target: Float[Tensor, "batch outputs"]) -> Float[Tensor, " batch"]:
        """Return the binary cross-entropy of each case: a sum over its known labels, divided by all labels."""
        known = ~target.isnan()
        truth = torch.where(known, target, 0.0).to(torch.float32)
        losses = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
        return torch.where(known, losses, 0.0).mean(1)

    def decode(self, logits: ScanLogits) -> ScanPrediction:
        """Return the probability of each label."""
        return ScanPrediction(logits.float().sigmoid())
