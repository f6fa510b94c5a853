"""Which of a detector's anchors or regions are learned from."""

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from lightning_atlas.networks.detection.matching import NOTHING, Anchors, Corners, Matcher

Numbers = Integer[Tensor, " asked"]


class Sampling:
    """Takes as many that shall find a box as there may be, and fills up with those that shall find nothing.

    Args:
        matcher: Says what each shall find.
        samples: How many are taken of an image.
        positive_share: How many of them shall find a box, at most.
    """

    def __init__(self, matcher: Matcher, samples: int, positive_share: float) -> None:
        self.matcher, self.samples, self.positive_share = matcher, samples, positive_share

    def __call__(self, boxes: Corners, anchors: Anchors) -> tuple[Numbers, Numbers]:
        """Return the numbers of those that are taken, and what each of them shall find.

        Args:
            boxes: To be found.
            anchors: To choose from.
        """
        matched = self.matcher(boxes, anchors, [len(anchors)])
        positive = drawn(matched >= 0, int(self.samples * self.positive_share))
        negative = drawn(matched == NOTHING, self.samples - len(positive))
        asked = torch.cat([positive, negative])
        return asked, matched[asked]


def drawn(of: Bool[Tensor, " anchors"], most: int) -> Integer[Tensor, " drawn"]:
    """Return the numbers of those that are marked, or of as many drawn at random.

    Args:
        of: Which may be drawn.
        most: How many.
    """
    marked = of.nonzero()[:, 0]
    return marked if len(marked) <= most else marked[torch.randperm(len(marked), device=marked.device)[:most]]
