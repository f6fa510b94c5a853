"""Classes that overlap: a tumour is in its organ."""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.losses import Losses, sigmoid_losses
from lightning_atlas.tasks.voxels import Probabilities, VoxelTask, smallest_integer
from lightning_atlas.types import Batch, Label, Logits, Prediction

BITS = 32
"""Classes at a time; the number of the combination of those before them fits into the other bits."""


class MultiLabelSegmentation(VoxelTask):
    """Says of every voxel and class whether it is inside, each class for itself (sigmoid); classes may overlap.

    The data need `Classes` with `exclusive: false`. A class that a case does not have drawn learns nothing from it.

    Args:
        window: How whole volumes are predicted.
        binary_cross_entropy: Weight of the binary cross-entropy in the loss.
        dice: Weight of the Dice loss in the loss.
        exclusion: Weight of the probability of classes in voxels where others were drawn that exclude them.
        threshold: Probability above which a voxel is inside.
        deep_supervision: Weights of the network's outputs from the finest down, for networks that return several in
            training; divided by their sum. `null`: each half of the finer one's.
    """

    overlapping = True
    misfit = (
        "the classes of the data exclude each other, but MultiLabelSegmentation lets them overlap (sigmoid): set "
        "data.init_args.classes: {class_path: Classes, init_args: {names: ..., exclusive: false}}, or "
        "model.init_args.task.class_path: Segmentation"
    )

    def __init__(
        self,
        window: SlidingWindow,
        binary_cross_entropy: float = 1.0,
        dice: float = 1.0,
        exclusion: float = 0.0,
        threshold: float = 0.5,
        deep_supervision: list[float] | None = None,
    ) -> None:
        weights = {"binary_cross_entropy": binary_cross_entropy, "dice": dice, "exclusion": exclusion}
        super().__init__(window, weights, deep_supervision)
        if not 0 < threshold < 1:
            raise ValueError(f"MultiLabelSegmentation: threshold is a probability between 0 and 1, found {threshold}")
        self.threshold = threshold

    def terms(self, logits: Logits, label: Label, batch: Batch) -> Losses:
        """Return the binary cross-entropy, the Dice loss and the exclusion loss of each case."""
        return sigmoid_losses(logits, label, batch["states"], batch["drawn"])

    def probabilities(self, logits: Logits) -> Probabilities:
        """Return the probability of each class in each voxel."""
        return logits.sigmoid()

    def decode(self, logits: Logits) -> Prediction:
        """Return the classes whose probability is above the threshold: a row for each combination that occurs."""
        level = math.log(self.threshold / (1 - self.threshold))
        cases = [combinations(case, level) for case in logits]
        most = max(len(inside) for _, inside in cases)
        tables = [torch.nn.functional.pad(inside, (0, 0, 0, most - len(inside))) for _, inside in cases]
        rows = torch.stack([rows.to(smallest_integer(most - 1)) for rows, _ in cases])
        return Prediction(rows, torch.stack(tables))


def combinations(
    logits: Float[Tensor, "classes i j k"], level: float
) -> tuple[Int64[Tensor, "i j k"], Bool[Tensor, "rows classes"]]:
    """Return a number for the set of classes of each voxel, and what each number stands for; 0 is the empty set.

    Classes become bits of one integer a voxel, some of them at a time: no mask outlives its class.

    Args:
        logits: Of one case.
        level: Above it a voxel is inside.
    """
    rows = torch.zeros(logits.shape[1:], dtype=torch.int64, device=logits.device)
    inside = torch.zeros(1, 0, dtype=torch.bool, device=logits.device)
    for some in logits.split(BITS):
        codes = rows << BITS
        for bit, values in enumerate(some):
            codes |= (values > level).long() << bit
        found, rows = codes.unique(return_inverse=True)
        if found[0] != 0:  # nowhere outside all classes
            found, rows = torch.cat([torch.zeros_like(found[:1]), found]), rows + 1
        added = [(found >> bit & 1).bool() for bit in range(len(some))]
        inside = torch.cat([inside[found >> BITS], torch.stack(added, 1)], 1)
    return rows, inside
