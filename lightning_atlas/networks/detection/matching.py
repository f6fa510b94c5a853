"""Which of a detector's anchors shall find which box."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Integer
from monai.data.box_utils import box_iou
from torch import Tensor

NOTHING, IGNORED = -1, -2
"""Of an anchor: it shall find nothing; it lies between finding something and nothing, and is not learned from."""

Corners = Float[Tensor, "boxes corners"]
Anchors = Float[Tensor, "anchors corners"]
Matched = Integer[Tensor, " anchors"]
"""The number of the box that each anchor shall find, or one of the above."""


class Matcher:
    """Says of each anchor which box it shall find."""

    def __call__(self, boxes: Corners, anchors: Anchors, levels: Sequence[int], shapes: int = 1) -> Matched:
        """Return the number of each anchor's box.

        Args:
            boxes: To be found, in two or three dimensions: the low corners, then the high ones.
            anchors: Of all levels, from the finest down.
            levels: How many anchors each level has.
            shapes: How many of them share their middle.
        """
        if not len(boxes):
            return torch.full((len(anchors),), NOTHING, device=anchors.device)
        return self.match(boxes, anchors, levels, shapes)

    def match(self, boxes: Corners, anchors: Anchors, levels: Sequence[int], shapes: int) -> Matched:
        """Return the number of each anchor's box, where there is at least one box."""
        raise NotImplementedError


class OverlapMatcher(Matcher):
    """An anchor finds the box that it overlaps most, if by enough.

    Source: Ren et al., "Faster R-CNN", 2015, https://arxiv.org/abs/1506.01497.

    Args:
        foreground: Overlap (intersection over union) from which an anchor finds the box.
        background: Overlap below which it finds nothing; what lies between is not learned from.
        rescue: A box is also found by the anchors that overlap it most, if by this much; null for no such rule.

    Raises:
        ValueError: The overlaps are not in order.
    """

    def __init__(self, foreground: float = 0.5, background: float = 0.4, rescue: float | None = 0.0) -> None:
        if not 0.0 < background <= foreground <= 1.0:
            raise ValueError(
                f"overlaps lie between 0 and 1, and that of the background is not above that of the foreground; found "
                f"foreground {foreground} and background {background}"
            )
        self.foreground, self.background, self.rescue = foreground, background, rescue

    def match(self, boxes: Corners, anchors: Anchors, levels: Sequence[int], shapes: int) -> Matched:
        """Return the number of each anchor's box."""
        overlaps = _overlaps(boxes, anchors)
        most, matched = overlaps.max(dim=0)
        matched = matched.where(most >= self.foreground, IGNORED)
        matched[most < self.background] = NOTHING
        if self.rescue is not None:
            nearest = overlaps.amax(dim=1, keepdim=True)
            for number, best in enumerate((overlaps == nearest) & (nearest > 0.0) & (nearest >= self.rescue)):
                matched[best] = number
        return matched


class AdaptiveMatcher(Matcher):
    """Of the anchors nearest to a box, those find it that overlap it more than these usually do (ATSS).

    Candidates are the anchors of each level whose middles are nearest. The overlap that is enough is the mean of the
    candidates' plus their standard deviation, so it suits small boxes and large ones. An anchor that suits several
    boxes finds the one that it overlaps most.

    Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample
    Selection", 2019, https://arxiv.org/abs/1912.02424; four candidates as MONAI and nnDetection take for 3D.
    Differs: a box that no anchor suits is found by the candidate that overlaps it most; a box that would be left
    without an anchor, as all that suit it overlap a larger one more, by the candidate that overlaps it most of those
    that no box needs: are no other's only one.

    Args:
        candidates: Voxels of each level whose anchors are asked.
        inside: Their middles must lie in the box; a small box then has few anchors.
    """

    def __init__(self, candidates: int = 4, inside: bool = False) -> None:
        self.candidates, self.inside = candidates, inside

    def match(self, boxes: Corners, anchors: Anchors, levels: Sequence[int], shapes: int) -> Matched:
        """Return the number of each anchor's box."""
        overlaps, chosen = _overlaps(boxes, anchors), self._nearest(boxes, anchors, levels, shapes)
        asked = overlaps.gather(1, chosen)
        enough = asked.mean(dim=1, keepdim=True) + asked.std(dim=1, correction=0, keepdim=True)
        suits = asked >= enough
        if self.inside:
            suits &= _centres_inside(boxes, anchors).gather(1, chosen)
        best = asked.argmax(dim=1, keepdim=True)
        suits |= ~suits.any(dim=1, keepdim=True) & torch.zeros_like(suits).scatter(1, best, True)
        wanted = torch.full_like(overlaps, -1.0).scatter(1, chosen, torch.where(suits, asked, -1.0))
        most, matched = wanted.max(dim=0)
        return _with_the_left(matched.where(most >= 0.0, NOTHING), asked, chosen)

    def _nearest(
        self, boxes: Corners, anchors: Anchors, levels: Sequence[int], shapes: int
    ) -> Integer[Tensor, "boxes asked"]:
        # Without the matrix product, which rounds: middles at equal distance would no longer be.
        exact = "donot_use_mm_for_euclid_dist"
        found, start, distances = [], 0, torch.cdist(_centres(boxes), _centres(anchors), compute_mode=exact)
        for count in levels:
            near = distances[:, start : start + count]
            found.append(near.topk(min(self.candidates * shapes, count), dim=1, largest=False).indices + start)
            start += count
        return torch.cat(found, dim=1)


def _with_the_left(
    matched: Matched, asked: Float[Tensor, "boxes asked"], chosen: Integer[Tensor, "boxes asked"]
) -> Matched:
    """Return the matches with an anchor also for boxes that have none, as far as others can spare one.

    Args:
        matched: Changed in place.
        asked: Overlaps of each box with its candidates.
        chosen: Numbers of the candidates.
    """
    counts = matched[matched >= 0].bincount(minlength=len(chosen))
    for left in (counts == 0).nonzero()[:, 0].tolist():
        holders = matched[chosen[left]]
        spare = (holders < 0) | (counts[holders] > 1)
        if spare.any():
            matched[chosen[left, asked[left].where(spare, -1.0).argmax()]] = left
            counts = matched[matched >= 0].bincount(minlength=len(chosen))
    return matched


def _overlaps(boxes: Corners, anchors: Anchors) -> Float[Tensor, "boxes anchors"]:
    overlaps = box_iou(boxes, anchors)
    assert isinstance(overlaps, Tensor)
    return overlaps


def _centres(corners: Corners) -> Float[Tensor, "boxes axes"]:
    low, high = corners.chunk(2, dim=1)
    return (low + high) / 2


def _centres_inside(boxes: Corners, anchors: Anchors) -> Bool[Tensor, "boxes anchors"]:
    low, high = boxes[:, None].chunk(2, dim=2)
    middle = _centres(anchors)
    return ((middle > low) & (middle < high)).all(dim=2)
