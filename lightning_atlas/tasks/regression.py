"""Numbers of a whole scan."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.networks.pooled import Pooling
from lightning_atlas.scan_metrics import Kind
from lightning_atlas.tasks.scans import ScanLogits, ScanTask
from lightning_atlas.types import ScanPrediction

LOSSES = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


class Regression(ScanTask):
    """Says numbers of a whole scan, such as an age (from pooled features of the encoder); needs `data.targets`.

    The network learns each value less its mean over the training scans and divided by its standard deviation there,
    which the data say and the checkpoint keeps; predictions and scores are in the values' own units. A value that is
    not known of a case teaches nothing there and is not scored.

    Args:
        window: Windows over whose outputs a whole scan's are averaged; `null` shows the network the whole scan at once.
        pooling: What is kept of each feature: its `mean` over the grid, its `max`imum, or `both`.
        dropout: Probability with which a pooled feature is dropped in training.
        loss: Squared error (`mse`), absolute error (`mae`), or squared up to one standard deviation (`huber`).
    """

    predicts: Kind = "values"
    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        window: SlidingWindow | None = None,
        pooling: Pooling = "both",
        dropout: float = 0.0,
        loss: Literal["mse", "mae", "huber"] = "mse",
    ) -> None:
        super().__init__(window, pooling, dropout)
        self.error = LOSSES[loss]
        self.register_buffer("mean", torch.zeros(1), persistent=False)
        self.register_buffer("spread", torch.ones(1), persistent=False)

    def agree(self, contract: Contract) -> None:
        """Take over mean and standard deviation of each value."""
        super().agree(contract)
        scale = torch.tensor(contract.seen_values or ((0.0, 1.0),), device=self.mean.device)
        self.mean, self.spread = scale[:, 0], torch.where(scale[:, 1] > 0, scale[:, 1], 1.0)

    def case_losses(self, logits: ScanLogits, target: Float[Tensor, "batch outputs"]) -> Float[Tensor, " batch"]:
        """Return the error of each case in standard deviations: a sum over its known values, divided by all values."""
        known = ~target.isnan()
        scaled = (torch.where(known, target, 0.0).float() - self.mean) / self.spread
        return torch.where(known, self.error(logits.float(), scaled, reduction="none"), 0.0).mean(1)

    def decode(self, logits: ScanLogits) -> ScanPrediction:
        """Return each value in its own units."""
        return ScanPrediction(logits.float() * self.spread + self.mean)
