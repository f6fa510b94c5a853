"""Losses on labels that are dense, sparse, partial or coarse: a value per case, so that a batch may be split anyhow.

A voxel's label is a row of its case's table (`lightning_atlas.types`), so every loss is arithmetic on what is summed
over the voxels of each row. One pass over the logits makes these sums for all losses, a second one the gradient, each
piece by piece: beside the gradient nothing of the logits' size is made, nor kept for the backward pass.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.autograd import Function

from lightning_atlas.types import Background, Drawn, Label, Logits, States

PIECE_CPU, PIECE = 4112, 2**18
"""Voxels at once: on a CPU what fits the cache of a thread. At multiples of 1024 outputs would displace each other."""
FAR = -1e30
"""A logit of no weight. Finite, so that a row without any possible output spoils no sum."""

Losses = dict[str, Float[Tensor, " batch"]]
Values = Float[Tensor, "_ voxels"]
Rows = Integer[Tensor, " voxels"]
OfPiece = Callable[[int, Values, Rows], Any]
"""Case, logits of some of its voxels and their rows -> whatever is wanted of them."""


def softmax_losses(logits: Logits, label: Label, states: States, drawn: Drawn, background: Background) -> Losses:
    """Return the losses of classes that exclude each other; output 0 is the background.

    cross_entropy: Negative log-probability of the set of outputs that a voxel may belong to: all whose state is not 0.
        It is averaged over the voxels whose set is not everything, but never over fewer than one plane of the patch.
    dice: One minus Dice of each class, compared where it was drawn, if a drawn voxel of it is in the patch; summed and
        divided by the number of all classes. A class weighs the same however many others were drawn.
    marginal_dice: The same, but outputs that the case's rows do not tell apart are one class with the sum of their
        probabilities, compared where it is known to be or not to be. What is merged with the background is not scored,
        as the background is not (Shi et al. 2021, Marginal loss and exclusion loss).

    All are finite, 0 for a perfect prediction (the first for a certain one) and where nothing is known. Where all is
    drawn the first is the ordinary cross-entropy, the other two are the ordinary Dice loss.

    Args:
        logits: Any precision; the losses are computed in float32.
        label: Rows of the tables.
        states: As in the batch.
        drawn: As in the batch.
        background: As in the batch.
    """
    possible = torch.cat([background.unsqueeze(2), states], 2) != 0
    voxels, surprise, probability = _SoftmaxSums.apply(logits.flatten(2), label.flatten(1), possible)
    known = (possible.any(2) & ~possible.all(2)).unsqueeze(2)
    plane = label.shape[1] * label.shape[2]
    place, inside, outside = _merge(possible)
    merged = torch.zeros_like(probability).scatter_add(2, place.unsqueeze(1).expand_as(probability), probability)
    return {
        "cross_entropy": _mean(surprise, voxels, known, plane),
        "dice": _dice_loss(probability[:, :, 1:], voxels, drawn & (states == 1), drawn),
        "marginal_dice": _dice_loss(merged[:, :, 1:], voxels, inside, inside | outside),
    }


def sigmoid_losses(logits: Logits, label: Label, states: States, drawn: Drawn) -> Losses:
    """Return the losses of classes that may overlap; there is an output for each and none for the background.

    binary_cross_entropy: Averaged over the voxels where a class was drawn; summed and divided by the number of all
        classes. The gradient of a class that was not drawn is exactly 0.
    dice: As of `softmax_losses`.
    exclusion: Probability of a class where it is known not to be although nobody drew it there, since another was
        that excludes it; averaged over these voxels, summed and divided by the number of all classes (after Shi et
        al. 2021). Where all is drawn it is 0.

    All are finite, and 0 where nothing is known.

    Args:
        logits: Any precision; the losses are computed in float32.
        label: Rows of the tables.
        states: As in the batch.
        drawn: As in the batch.
    """
    present = states == 1
    voxels, surprise, probability = _SigmoidSums.apply(logits.flatten(2), label.flatten(1), present)
    return {
        "binary_cross_entropy": _mean(surprise, voxels, drawn),
        "dice": _dice_loss(probability, voxels, drawn & present, drawn),
        "exclusion": _mean(probability, voxels, (states == 0) & ~drawn),
    }


def _mean(
    sums: Float[Tensor, "batch rows classes"],
    voxels: Float[Tensor, "batch rows 1"],
    counted: Bool[Tensor, "batch rows classes"],
    least: int = 1,
) -> Float[Tensor, " batch"]:
    """Return the average over the voxels of the rows that count, then over the classes."""
    return ((sums * counted).sum(1) / (voxels * counted).sum(1).clamp_min(least)).mean(1)


def _dice_loss(
    probability: Float[Tensor, "batch rows classes"],
    voxels: Float[Tensor, "batch rows 1"],
    inside: Bool[Tensor, "batch rows classes"],
    compared: Bool[Tensor, "batch rows classes"],
) -> Float[Tensor, " batch"]:
    overlap, reference = (probability * inside).sum(1), (voxels * inside).sum(1)
    total = (probability * compared).sum(1) + reference
    counts = reference > 0
    return ((1 - 2 * overlap / total.where(counts, 1)) * counts).mean(1)


def _merge(
    possible: Bool[Tensor, "batch rows outputs"],
) -> tuple[Integer[Tensor, "batch outputs"], Bool[Tensor, "batch rows _"], Bool[Tensor, "batch rows _"]]:
    """Return which outputs are one class, and in which rows a voxel is in that class and in which it is not.

    A class has the place of the first of its outputs; the background's is left out of both tables.
    """
    same = ~(possible.unsqueeze(3) ^ possible.unsqueeze(2)).any(1)
    place = same.to(torch.uint8).argmax(2)
    scored = (place == torch.arange(same.shape[1], device=place.device)).unsqueeze(1)
    whole = possible.sum(2, keepdim=True) == same.sum(2).unsqueeze(1)
    inside, outside = possible & whole & scored, ~possible & scored
    return place, inside[:, :, 1:], outside[:, :, 1:]


class _SoftmaxSums(Function):
    """Voxels, negative log-probability of the possible outputs, and probability of each output, summed for each row."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Float[Tensor, "batch outputs voxels"],
        label: Integer[Tensor, "batch voxels"],
        possible: Bool[Tensor, "batch rows outputs"],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, label, possible)
        sets = _Sets(possible)

        def of_piece(case: int, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            log_p = x.log_softmax(0)
            return sets.surprise(case, log_p, row), log_p.exp_()

        sums = _sum_rows(logits, label, of_piece, possible.shape[1], 1)
        ctx.mark_non_differentiable(sums[0])
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, label, possible = ctx.saved_tensors
        sets, of_surprise, of_probability = _Sets(possible), gradients[1].squeeze(2), gradients[2].mT.contiguous()

        def of_piece(case: int, x: Tensor, row: Tensor) -> Tensor:
            p, weight = x.softmax(0), of_surprise[case].index_select(0, row)
            slope = of_probability[case].index_select(1, row)
            slope.add_(weight - torch.linalg.vecdot(p, slope, dim=0)).mul_(p)
            return sets.subtract(case, slope, weight, x, row)

        return _map_pieces(logits, label, of_piece), None, None


class _SigmoidSums(Function):
    """Voxels, binary cross-entropy, and probability of each output, summed for each row."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Float[Tensor, "batch outputs voxels"],
        label: Integer[Tensor, "batch voxels"],
        present: Bool[Tensor, "batch rows outputs"],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, label, present)
        sign = (1 - 2 * present.float()).mT.contiguous()

        def of_piece(case: int, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            return F.softplus(sign[case].index_select(1, row).mul_(x)), x.sigmoid()

        sums = _sum_rows(logits, label, of_piece, present.shape[1], logits.shape[1])
        ctx.mark_non_differentiable(sums[0])
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, label, present = ctx.saved_tensors
        of_surprise, of_probability = (each.mT.contiguous() for each in gradients[1:])
        both, where_present = of_surprise + of_probability, of_surprise * present.mT

        def of_piece(case: int, x: Tensor, row: Tensor) -> Tensor:
            p, slope = x.sigmoid(), both[case].index_select(1, row)
            slope.addcmul_(of_probability[case].index_select(1, row), p, value=-1).mul_(p)
            return slope.sub_(where_present[case].index_select(1, row))

        return _map_pieces(logits, label, of_piece), None, None


class _Sets:
    """The set of outputs that each row allows; most often it is one output, and then less is computed."""

    def __init__(self, possible: Bool[Tensor, "batch rows outputs"]) -> None:
        self.single = _all_single(possible)
        self.output = possible.to(torch.uint8).argmax(2)
        self.closed = torch.zeros_like(possible, dtype=torch.float32).masked_fill_(~possible, FAR).mT.contiguous()

    def surprise(self, case: int, log_p: Values, row: Rows) -> Values:
        """Return the negative log-probability of the set of each voxel."""
        if self.single:
            return -log_p.gather(0, self.output[case].index_select(0, row).unsqueeze(0))
        inside = self.closed[case].index_select(1, row).add_(log_p)
        return (inside.log_softmax(0).amax(0) - inside.amax(0)).unsqueeze(0)  # both of the set's likeliest output

    def subtract(self, case: int, slope: Values, weight: Float[Tensor, " voxels"], x: Values, row: Rows) -> Values:
        """Subtract the probability of each output within the set, weighted, in place."""
        if self.single:
            return slope.scatter_add_(0, self.output[case].index_select(0, row).unsqueeze(0), -weight.unsqueeze(0))
        return slope.sub_(self.closed[case].index_select(1, row).add_(x).softmax(0).mul_(weight))


def _all_single(possible: Bool[Tensor, "batch rows outputs"]) -> bool:
    """Return whether each row allows one output or any; `False` where the answer would keep a device waiting."""
    if possible.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    size = possible.sum(2)
    return not bool(((size > 1) & (size < possible.shape[2])).any())


def _sum_rows(
    logits: Float[Tensor, "batch outputs voxels"],
    label: Integer[Tensor, "batch voxels"],
    of_piece: OfPiece,
    rows: int,
    surprises: int,
) -> tuple[Tensor, ...]:
    """Sum ones and what is made of each piece, its surprises and probabilities, over the voxels of each row."""
    batch, outputs = logits.shape[:2]
    known = {"device": logits.device, "dtype": torch.float32}  # the default may be half of it
    sums = [torch.zeros(batch, rows, size, **known) for size in (1, surprises, outputs)]
    with torch.autocast(logits.device.type, enabled=False):
        for case, piece in _pieces(logits):
            row = label[case, piece].long()
            there = torch.zeros(rows, len(row), **known).scatter_(0, row.unsqueeze(0), 1.0)
            values = of_piece(case, logits[case, :, piece].float(), row)
            parts = (there.sum(1, keepdim=True), *(there @ each.mT for each in values))
            for total, part in zip(sums, parts, strict=True):
                total[case] += part
    return tuple(sums)


def _map_pieces(
    logits: Float[Tensor, "batch outputs voxels"], label: Integer[Tensor, "batch voxels"], of_piece: OfPiece
) -> Float[Tensor, "batch outputs voxels"]:
    result = torch.empty_like(logits)
    for case, piece in _pieces(logits):
        result[case, :, piece] = of_piece(case, logits[case, :, piece].float(), label[case, piece].long())
    return result


def _pieces(logits: Float[Tensor, "batch outputs voxels"]) -> Iterator[tuple[int, slice]]:
    here = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    step = PIECE_CPU * torch.get_num_threads() if here else PIECE
    for case in range(len(logits)):
        for begin in range(0, logits.shape[2], step):
            yield case, slice(begin, begin + step)
