"""A class for every voxel, or none."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from lightning_atlas.contract import side_pairs
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.losses import drawn_dice_loss, set_cross_entropy
from lightning_atlas.metrics import CaseDice, DiceResult
from lightning_atlas.tasks.base import Split, Task
from lightning_atlas.types import Batch, Image, Logits


class Segmentation(Task):
    """Puts every voxel in one of the classes or in the background (softmax).

    Args:
        window: How whole volumes are predicted.
        cross_entropy: Weight of the cross-entropy in the loss.
        dice: Weight of the Dice loss in the loss.
    """

    def __init__(self, window: SlidingWindow, cross_entropy: float = 1.0, dice: float = 1.0) -> None:
        super().__init__()
        self.window = window
        self.cross_entropy = cross_entropy
        self.dice = dice
        self.scores = nn.ModuleDict()

    def outputs(self, classes: Sequence[str]) -> int:
        """Return one for each class and one for the background."""
        return len(classes) + 1

    def setup(self, classes: Sequence[str], mirrored_axes: Sequence[str] = ()) -> None:
        """Make a `CaseDice` for validation and one for the test; the window learns which axes training mirrored."""
        self.window.set_mirroring(mirrored_axes, [(1 + one, 1 + other) for one, other in side_pairs(classes)])
        self.scores.update({split: CaseDice(len(classes)) for split in ("val", "test")})

    def loss(self, logits: Logits, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted sum as `loss`, and its terms `cross_entropy` and `dice`, detached.

        Raises:
            ValueError: The network has another number of outputs than the tables need.
        """
        label, states, drawn = batch["label"], batch["states"], batch["drawn"]
        if logits.shape[1] != states.shape[2] + 1:
            raise ValueError(
                f"the network has {logits.shape[1]} outputs, expected {states.shape[2] + 1}: "
                f"the background and the {states.shape[2]} classes of the data"
            )
        outputs = torch.cat([batch["background"].unsqueeze(2), states], 2)
        cross_entropy = set_cross_entropy(logits, label, outputs).mean()
        dice = drawn_dice_loss(logits.float().softmax(1), label, states, drawn).mean()
        loss = self.cross_entropy * cross_entropy + self.dice * dice
        return {"loss": loss, "cross_entropy": cross_entropy.detach(), "dice": dice.detach()}

    def infer(self, network: nn.Module, image: Image) -> Logits:
        """Return the logits of whole images."""
        return self.window(network, image)

    def decode(self, logits: Logits) -> Integer[Tensor, "batch i j k"]:
        """Return the likeliest output: 0 for the background, c+1 for class c."""
        return logits.argmax(1).to(torch.uint8 if logits.shape[1] <= 256 else torch.int16)

    def update(self, split: Split, prediction: Integer[Tensor, "batch i j k"], batch: Batch) -> None:
        """Score a prediction where its classes were drawn."""
        voxel_ml = batch["spacing_mm"].prod(1) / 1000
        self._metric(split).update(
            prediction.to(batch["label"].device),
            batch["label"],
            batch["states"],
            batch["drawn"],
            batch["index"],
            voxel_ml,
        )

    def compute(self, split: Split) -> DiceResult:
        """Return Dice and volumes of each case and class, over all ranks."""
        return self._metric(split).compute()

    def reset(self, split: Split) -> None:
        """Forget the scores."""
        self._metric(split).reset()

    def _metric(self, split: Split) -> CaseDice:
        return cast(CaseDice, self.scores[split])
