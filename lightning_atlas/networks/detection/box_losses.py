"""What a detector's answers cost at its anchors; an image weighs the same however many boxes it has."""

from typing import Literal

import torch
from jaxtyping import Float, Integer
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import box_pair_giou
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F

from lightning_atlas.networks.detection.matching import NOTHING, Anchors, Corners, Matched
from lightning_atlas.networks.detection.sampling import drawn

Deltas = Float[Tensor, "anchors corners"]


class AnchorLoss:
    """Cost of the classes and of the boxes at the anchors of one image.

    Source: for `hard_negatives` nnDetection (Baumgartner et al., 2021, https://arxiv.org/abs/2106.00817), numbers as
    in MONAI's example of lung nodules; for `focal` Lin et al., "Focal Loss for Dense Object Detection", 2017,
    https://arxiv.org/abs/1708.02002; for `giou` Rezatofighi et al., "Generalized Intersection over Union", 2019,
    https://arxiv.org/abs/1902.09630.

    Args:
        classification: `hard_negatives` takes the mean of the cross-entropy over a sample of anchors: those that shall
            find a box, and of the others some that seem to be one. `focal` takes the focal loss of all anchors, divided
            by how many shall find a box.
        regression: `smooth_l1` of the encoded corners, or `giou`, one minus the generalised overlap of the boxes.
        samples: Anchors of an image that `hard_negatives` takes at most.
        positive_share: How much of them shall find a box, if there are as many.
        pool: The others are drawn from this many times as many that seem most to be a box.
        least_negatives: How many others are drawn at least.
        beta: Below this difference `smooth_l1` is a square.

    Raises:
        ValueError: The share of the samples that shall find a box is none, or more than all.
    """

    def __init__(
        self,
        classification: Literal["hard_negatives", "focal"] = "hard_negatives",
        regression: Literal["smooth_l1", "giou"] = "giou",
        samples: int = 64,
        positive_share: float = 0.3,
        pool: float = 20.0,
        least_negatives: int = 16,
        beta: float = 1 / 9,
    ) -> None:
        if int(samples * positive_share) < 1 or positive_share > 1:
            raise ValueError(
                f"AnchorLoss: of samples, {samples}, the positive_share, {positive_share}, shall find a box, which is "
                "one anchor or more, and not more than all: write samples: 64 and positive_share: 0.3, for example"
            )
        self.classification, self.regression = classification, regression
        self.samples, self.positive_share, self.pool = samples, positive_share, pool
        self.least_negatives, self.beta = least_negatives, beta

    def of_classes(
        self, logits: Float[Tensor, "anchors classes"], matched: Matched, classes: Integer[Tensor, " boxes"]
    ) -> Float[Tensor, ""]:
        """Return the cost of the classes.

        Args:
            logits: Of each class at each anchor.
            matched: What each anchor shall find.
            classes: Of the boxes.
        """
        positive = matched >= 0
        wanted = torch.zeros_like(logits)
        wanted[positive, classes[matched[positive]]] = 1.0
        if self.classification == "focal":
            asked = matched >= NOTHING
            every = sigmoid_focal_loss(logits[asked], wanted[asked], gamma=2.0, alpha=0.25)
            return every.sum() / max(1, int(positive.sum()))
        asked = self.sample(logits.detach().amax(dim=1), matched)
        return F.binary_cross_entropy_with_logits(logits[asked], wanted[asked])

    def sample(self, seeming: Float[Tensor, " anchors"], matched: Matched) -> Integer[Tensor, " asked"]:
        """Return the anchors that are asked, those that shall find a box first.

        Args:
            seeming: How much each anchor seems to be a box.
            matched: What each anchor shall find.
        """
        positive = drawn(matched >= 0, int(self.samples * self.positive_share))
        others = round(max(1, len(positive)) * (1 / self.positive_share - 1))
        negative, count = (matched == NOTHING).nonzero()[:, 0], max(others, self.least_negatives)
        hardest = negative[seeming[negative].topk(min(len(negative), int(count * self.pool))).indices]
        order = torch.randperm(len(hardest), device=hardest.device)[:count]
        return torch.cat([positive, hardest[order]])

    def of_boxes(
        self, deltas: Deltas, anchors: Anchors, matched: Matched, corners: Corners, coder: BoxCoder
    ) -> Float[Tensor, ""]:
        """Return the cost of the boxes: the mean over the anchors that shall find one.

        Args:
            deltas: How the box lies beside each anchor.
            anchors: Of all levels.
            matched: What each anchor shall find.
            corners: Of the boxes.
            coder: Of the deltas.
        """
        positive = matched >= 0
        ours, theirs, base = deltas[positive], corners[matched[positive]], anchors[positive]
        if not len(ours):
            return ours.sum()
        if self.regression == "giou":
            overlap = box_pair_giou(coder.decode_single(ours, base), theirs)
            assert isinstance(overlap, Tensor)
            return (1 - overlap).mean()
        return F.smooth_l1_loss(ours, coder.encode_single(theirs, base), beta=self.beta, reduction="sum") / len(ours)
