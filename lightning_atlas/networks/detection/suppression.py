"""Which of the boxes that a detector proposes are kept."""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

Corners = Float[Tensor, "boxes corners"]
Scores = Float[Tensor, " boxes"]
Classes = Integer[Tensor, " boxes"]

BLOCK = 2048
"""Boxes that are asked at once: the windows of a large scan, mirrored, find a hundred thousand, of which few are kept.
"""


def suppressed(
    corners: Corners, scores: Scores, classes: Classes, overlap: float, most: int | None = None
) -> Integer[Tensor, " kept"]:
    """Return the numbers of the boxes that no better one of their class overlaps too much, best first.

    The boxes are those of MONAI's `batched_nms`, which asks one box after the other; here `BLOCK` are asked at once,
    until nothing changes any more: a few steps in place of hundreds, each of which a GPU would be waited for.

    Args:
        corners: In two or three dimensions: the low corners, then the high ones.
        scores: Of each box.
        classes: Boxes of different classes leave each other alone.
        overlap: Intersection over union above which the box with the lower score goes.
        most: How many are kept; all where not given.
    """
    order = scores.argsort(descending=True, stable=True)
    found = order[:0]
    for block in order.split(BLOCK):
        if len(found):
            block = block[~_overlapping(corners, classes, found, block, overlap).any(dim=0)]
        over = _overlapping(corners, classes, block, block, overlap).triu(1).to(torch.float32)
        kept = torch.ones(len(block), device=over.device)
        while not torch.equal(kept, after := (kept @ over == 0).to(torch.float32)):
            kept = after
        found = torch.cat([found, block[kept.bool()]])[:most]
        if len(found) == most:
            break
    return found


def _overlapping(
    corners: Corners, classes: Classes, some: Integer[Tensor, " some"], others: Integer[Tensor, " others"], least: float
) -> Bool[Tensor, "some others"]:
    """Return which of some boxes overlap which others of their class by more than `least`."""
    # Axis after axis: MONAI's `box_iou` holds all axes of all pairs at once.
    low, high = corners[some].float().chunk(2, dim=1)
    other_low, other_high = corners[others].float().chunk(2, dim=1)
    shared = torch.ones(len(some), len(others), device=corners.device)
    for axis in range(low.shape[1]):
        end = torch.minimum(high[:, axis, None], other_high[:, axis])
        shared *= (end - torch.maximum(low[:, axis, None], other_low[:, axis])).clamp(min=0.0)
    sizes = (high - low).prod(dim=1)[:, None] + (other_high - other_low).prod(dim=1)
    return (shared > least * (sizes - shared)) & (classes[some][:, None] == classes[others])


def clipped(corners: Corners, sides: tuple[int, ...]) -> Corners:
    """Return the boxes cut to an image.

    Args:
        corners: The low corners, then the high ones.
        sides: Of the image.
    """
    limit = torch.tensor([*sides, *sides], dtype=corners.dtype, device=corners.device)
    return corners.clamp(min=0.0).minimum(limit)


class BoxSelection:
    """Which candidates are kept as found.

    Args:
        least_score: Candidates whose score is not above it are dropped.
        candidates: How many are kept of each level before suppression, the best.
        overlap: Intersection over union above which the candidate with the lower score is suppressed.
        most: How many boxes an image has at most.
    """

    def __init__(
        self, least_score: float = 0.05, candidates: int = 1000, overlap: float = 0.5, most: int = 100
    ) -> None:
        self.least_score, self.candidates, self.overlap, self.most = least_score, candidates, overlap, most

    def best(self, scores: Float[Tensor, "anchors classes"]) -> tuple[Classes, Classes]:
        """Return anchors and classes of the candidates of one level, best first.

        Args:
            scores: Of each class at each anchor.
        """
        flat = scores.flatten()
        values, order = flat.topk(min(self.candidates, len(flat)))
        order = order[values > self.least_score]
        return order // scores.shape[1], order % scores.shape[1]

    def kept(self, corners: Corners, scores: Scores, classes: Classes) -> Integer[Tensor, " kept"]:
        """Return the numbers of the candidates that are kept, best first; boxes without extent are not.

        Args:
            corners: Of the candidates, cut to the image.
            scores: Of each.
            classes: Of each.
        """
        low, high = corners.chunk(2, dim=1)
        there = (high > low).all(dim=1).nonzero()[:, 0]
        return there[suppressed(corners[there], scores[there], classes[there], self.overlap, self.most)]
