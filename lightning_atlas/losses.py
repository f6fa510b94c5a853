"""Losses on labels that are dense, sparse, partial or coarse: a value per case, so that a batch may be split anyhow.

A voxel's label is a row of its case's table (`lightning_atlas.types`).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int8, Integer, Shaped
from torch import Tensor

from lightning_atlas.types import Drawn, Label, Logits, States

IGNORED = -100


def set_cross_entropy(
    logits: Logits, label: Label, states: Int8[Tensor, "batch rows outputs"]
) -> Float[Tensor, " batch"]:
    """Return the negative log-probability of the set of outputs that each voxel may belong to, averaged over each case.

    The set is every output whose state is not 0. The average is over the voxels whose set is not everything, but never
    over fewer than one plane of the patch. Where every set is one output this is the ordinary cross-entropy.

    Args:
        logits: Any precision; the loss is computed in float32.
        label: Rows of the table.
        states: With a column for each output.
    """
    log_probabilities = logits.float().log_softmax(1)
    possible = states != 0
    size, everything = possible.sum(2), possible.all(2)
    target = _look_up(torch.where((size == 1) & ~everything, possible.int().argmax(2), IGNORED), label)
    in_set = _look_up((size > 1) & ~everything, label)

    losses = F.nll_loss(log_probabilities, target, ignore_index=IGNORED, reduction="none").sum((1, 2, 3))
    if in_set.any():
        cases = zip(log_probabilities.flatten(2), label.flatten(1), possible, in_set.flatten(1), strict=True)
        losses = losses + torch.stack([_set_losses(*case) for case in cases])
    voxels = ((target != IGNORED) | in_set).sum((1, 2, 3))
    plane = label.shape[1] * label.shape[2]
    return losses / voxels.clamp_min(plane)


def drawn_dice_loss(
    probabilities: Float[Tensor, "batch outputs i j k"], label: Label, states: States, drawn: Drawn
) -> Float[Tensor, " batch"]:
    """Return one minus Dice, summed over the classes drawn in a case, divided by the number of all classes.

    Each class is compared where it was drawn only, and counts if it has a drawn voxel in the patch: the loss is 0 for a
    perfect prediction, and a class weighs the same however many others were drawn.

    Args:
        probabilities: Of the tables' classes, behind any outputs that are not theirs (softmax's background).
        label: Rows of the tables.
        states: As in the batch.
        drawn: As in the batch.
    """
    rows, classes = states.shape[1:]
    predicted = _row_sums(probabilities.float(), label, rows)[:, -classes:].transpose(1, 2)
    voxels = _row_sums(torch.ones_like(label, dtype=torch.float32).unsqueeze(1), label, rows).transpose(1, 2)
    present = drawn & (states == 1)

    overlap = (predicted * present).sum(1)
    reference = (voxels * present).sum(1)
    total = (predicted * drawn).sum(1) + reference
    counts = reference > 0
    dice_loss = 1 - 2 * overlap / total.where(counts, 1)
    return (dice_loss * counts).sum(1) / classes


def _set_losses(
    log_probabilities: Float[Tensor, "outputs voxels"],
    label: Integer[Tensor, " voxels"],
    possible: Bool[Tensor, "rows outputs"],
    chosen: Bool[Tensor, " voxels"],
) -> Float[Tensor, ""]:
    """Sum the loss of the chosen voxels of one case; only these are read."""
    voxels = chosen.nonzero().flatten()
    of_voxels = log_probabilities.gather(1, voxels.expand(len(log_probabilities), -1))
    outside = torch.zeros_like(possible, dtype=torch.float32).masked_fill(~possible, -torch.inf)
    sets = outside.T.index_select(1, label[voxels].long())
    return -(of_voxels + sets).logsumexp(0).sum()


def _look_up(table: Shaped[Tensor, "batch rows"], label: Label) -> Shaped[Tensor, "batch i j k"]:
    """Replace each voxel's row by what a table says of it."""
    return table.gather(1, label.flatten(1).long()).view(label.shape)


def _row_sums(
    values: Float[Tensor, "batch channels i j k"], label: Label, rows: int
) -> Float[Tensor, "batch channels rows"]:
    """Sum over the voxels of each row, plane by plane first: one long float32 sum would swallow small values."""
    index = label.flatten(2).long().unsqueeze(1).expand(-1, values.shape[1], -1, -1)
    planes = values.new_zeros(*values.shape[:3], rows)
    return planes.scatter_add(3, index, values.flatten(3)).sum(2)
