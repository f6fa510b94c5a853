"""Boxes of whole images from overlapping windows."""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from jaxtyping import Bool, Float
from monai.data.utils import dense_patch_slices
from torch import Tensor

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.networks.detection.base import Detector
from lightning_atlas.networks.detection.suppression import clipped, suppressed
from lightning_atlas.tasks.scans import padded
from lightning_atlas.types import Boxes, Image

Corners = Float[Tensor, "boxes 6"]


class BoxWindows:
    """Finds boxes in windows, and keeps one of those that several windows, or a window and its mirror image, found.

    What lies within the overlap and near the window's own face is left to the neighbour, which sees all of it: so a
    structure of up to three quarters of the overlap is never found in parts.

    Args:
        window: Sides, overlap, windows at once, and mirroring; `None` looks at whole images at once.
        overlap: Intersection over union above which of two boxes of a class the one with the lower score goes.
        most: Boxes that an image has at most, the best.
    """

    def __init__(self, window: SlidingWindow | None, overlap: float, most: int) -> None:
        self.window = window
        self.overlap = overlap
        self.most = most

    def __call__(self, network: Detector, image: Image) -> list[Boxes]:
        """Return the boxes of each image, best first, in its own voxels."""
        sides = tuple(image.shape[2:])
        if self.window is None:
            within = padded(image, network.size_multiple, network.size_offset)
            found = [[each] for each in self._found(network, within)]
        else:
            # Only sides that are shorter than the window are filled up to it.
            steps = [each if side < each else 1 for side, each in zip(sides, self.window.patch, strict=True)]
            found = self._in_windows(network, padded(image, steps), self.window)
        several = self.window is not None
        return [self._best(joined(each), sides, several) for each in found]

    def _found(self, network: Detector, image: Image) -> list[Boxes]:
        return network.found(network(image.float()))

    def _in_windows(self, network: Detector, image: Image, window: SlidingWindow) -> list[list[Boxes]]:
        """Return what each window says of each image."""
        sides, patch = tuple(image.shape[2:]), list(window.patch)
        steps = [max(1, int(side * (1 - window.overlap))) for side in patch]
        shared = [side - step for side, step in zip(patch, steps, strict=True)]
        places = dense_patch_slices(list(sides), patch, steps)
        found: list[list[Boxes]] = [[] for _ in image]
        for first in range(0, len(places), window.batch_size):
            some = places[first : first + window.batch_size]
            together = torch.cat([image[:, :, *place] for place in some])
            for said in self._mirrored(network, together, window):
                for (place, number), boxes in zip(product(some, range(len(image))), said, strict=True):
                    start = [int(each.start) for each in place]
                    mine = boxes.chosen(own(boxes.corners, start, patch, sides, shared))
                    found[number].append(mine._replace(corners=mine.corners + mine.corners.new_tensor(start * 2)))
        return found

    def _mirrored(self, network: Detector, windows: Image, window: SlidingWindow) -> Iterator[list[Boxes]]:
        """Yield what the network says of windows, then of each mirroring of them, mirrored back."""
        yield self._found(network, windows)
        for axes in window.reversals:
            flipped = self._found(network, windows.flip([2 + axis for axis in axes]))
            pairs = window.pairs if len(axes) % 2 else []
            yield [mirrored(each, axes, windows.shape[2:], pairs) for each in flipped]

    def _best(self, boxes: Boxes, sides: tuple[int, ...], several: bool) -> Boxes:
        """Return the best boxes inside an image; those that reach into the filling are cut there."""
        boxes = boxes._replace(corners=clipped(boxes.corners, sides))
        low, high = boxes.corners.chunk(2, dim=1)
        boxes = boxes.chosen((high > low).all(1))
        assert boxes.scores is not None
        if several:
            kept = suppressed(boxes.corners, boxes.scores, boxes.classes, self.overlap, self.most)
        else:
            kept = boxes.scores.argsort(descending=True, stable=True)[: self.most]
        return boxes.chosen(kept)


NEAR = 3 / 8
"""Share of the overlap. At a half, neighbours that place a box a little differently could both leave it."""


def own(
    corners: Corners, start: Sequence[int], patch: Sequence[int], sides: Sequence[int], shared: Sequence[int]
) -> Bool[Tensor, " boxes"]:
    """Return which boxes of a window are not left to a neighbour: those that it does not see whole, or sees no better.

    Args:
        corners: In voxels of the window.
        start: Where the window begins in the image.
        patch: Sides of the window.
        sides: Of the image.
        shared: Voxels along each axis by which windows overlap.
    """
    kept = torch.ones(len(corners), dtype=torch.bool, device=corners.device)
    for axis, (begin, side, end, both) in enumerate(zip(start, patch, sides, shared, strict=True)):
        low, high = corners[:, axis], corners[:, 3 + axis]
        middle = (low + high) / 2
        if begin > 0:
            kept &= ~((high <= both) & (middle < NEAR * both))
        if begin + side < end:
            kept &= ~((low >= side - both) & (middle > side - NEAR * both))
    return kept


def mirrored(boxes: Boxes, axes: Sequence[int], sides: Sequence[int], pairs: Sequence[tuple[int, int]]) -> Boxes:
    """Return boxes of an image that is reversed along some axes; classes that are mirror images change places.

    Args:
        boxes: In voxels of the image.
        axes: Of 0, 1, 2.
        sides: Of the image.
        pairs: Classes that are each other's mirror image.
    """
    low, high = boxes.corners[:, :3].clone(), boxes.corners[:, 3:].clone()
    for axis in axes:
        low[:, axis], high[:, axis] = sides[axis] - boxes.corners[:, 3 + axis], sides[axis] - boxes.corners[:, axis]
    classes = boxes.classes.clone()
    for one, other in pairs:
        classes[boxes.classes == one], classes[boxes.classes == other] = other, one
    return Boxes(torch.cat([low, high], 1), classes, boxes.scores)


def joined(parts: Sequence[Boxes]) -> Boxes:
    """Return the boxes of several answers about one image together."""
    scores = [each.scores for each in parts if each.scores is not None]
    corners, classes = [each.corners for each in parts], [each.classes for each in parts]
    return Boxes(torch.cat(corners), torch.cat(classes), torch.cat(scores))
