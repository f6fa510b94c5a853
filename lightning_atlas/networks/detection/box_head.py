"""The second stage of Faster R-CNN: of which class a region is, and where exactly its box lies."""

import torch
from jaxtyping import Float, Integer
from monai.apps.detection.utils.box_coder import BoxCoder
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.networks.detection.matching import OverlapMatcher
from lightning_atlas.networks.detection.sampling import Sampling
from lightning_atlas.networks.detection.suppression import BoxSelection, clipped

HIDDEN = 1024
CELLS = 7
"""Along each side of a region. Source: both as in Lin et al., https://arxiv.org/abs/1612.03144."""

Planar = Float[Tensor, "regions 4"]
Logits = Float[Tensor, "regions outputs"]
Deltas = Float[Tensor, "regions outputs 4"]
Matched = Integer[Tensor, " regions"]
Truth = Float[Tensor, "boxes 4"]
Classes = Integer[Tensor, " boxes"]
Found = Float[Tensor, "found 4"]


class BoxHead(nn.Module):
    """Says of which class a region is, output 0 being the background, and for each class how the box lies beside it.

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", 2016, https://arxiv.org/abs/1612.03144; names,
    shapes and the order of the outputs as in mmdetection 1, where the background has (unused) deltas, too.

    Args:
        features: Channels of a region.
        classes: Without the background.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        inputs = features * CELLS**2
        self.shared_fcs = nn.ModuleList([nn.Linear(inputs, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])
        for layer in self.shared_fcs:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.resize(classes)

    def resize(self, classes: int) -> None:
        """Make the last layers anew."""
        like = self.shared_fcs[1].weight
        assert isinstance(like, Tensor)
        self.fc_cls = nn.Linear(HIDDEN, classes + 1, device=like.device, dtype=like.dtype)
        self.fc_reg = nn.Linear(HIDDEN, 4 * (classes + 1), device=like.device, dtype=like.dtype)
        for layer, deviation in ((self.fc_cls, 0.01), (self.fc_reg, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Float[Tensor, "regions features cells cells"]) -> tuple[Logits, Deltas]:
        """Return logits and deltas of each region."""
        # Published layers read rows (j) before columns (i).
        found = regions.transpose(2, 3).flatten(1)
        for layer in self.shared_fcs:
            found = F.relu(layer(found))
        return self.fc_cls(found), self.fc_reg(found).unflatten(1, (-1, 4))


class Refining:
    """How the second stage of a `SliceDetector` learns, and what is kept of its answers.

    Args:
        overlap: With a box from which a region shall find it.
        samples: Regions of an image that are learned from.
        positive_share: How many of them shall find a box, at most.
        selection: Which answers are kept; a score of any height counts by default, as published for lesions.
        beta: Below this difference the cost of a delta is a square; 0 leaves it straight (L1).
    """

    def __init__(
        self,
        overlap: float = 0.5,
        samples: int = 512,
        positive_share: float = 0.25,
        selection: BoxSelection | None = None,
        beta: float = 0.0,
    ) -> None:
        self.sampling = Sampling(OverlapMatcher(overlap, overlap, rescue=None), samples, positive_share)
        self.selection = selection or BoxSelection(least_score=0.0)
        self.coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
        self.beta = beta

    @torch.no_grad()
    def sampled(self, proposals: Float[Tensor, "proposals 4"], boxes: Truth) -> tuple[Planar, Matched]:
        """Return the regions of an image that are learned from, and what each shall find.

        Args:
            proposals: Of the first stage; the boxes are added to them.
            boxes: To be found.
        """
        regions = torch.cat([boxes.to(proposals.dtype), proposals])
        asked, matched = self.sampling(boxes, regions)
        return regions[asked], matched

    def losses(
        self, logits: Logits, deltas: Deltas, regions: Planar, matched: Matched, boxes: Truth, classes: Classes
    ) -> tuple[Tensor, Tensor]:
        """Return what one image costs: the mean over its regions, of the classes and of the boxes.

        Args:
            logits: Of the regions.
            deltas: Of the regions.
            regions: That are learned from.
            matched: What each shall find.
            boxes: To be found, in the plane.
            classes: Of these.
        """
        hits = matched >= 0
        wanted = torch.zeros_like(matched)
        wanted[hits] = classes[matched[hits]] + 1
        aims = self.coder.encode_single(boxes[matched[hits]], regions[hits])
        of_boxes = F.smooth_l1_loss(deltas[hits, wanted[hits]], aims, reduction="sum", beta=self.beta)
        return F.cross_entropy(logits, wanted, reduction="sum") / max(1, len(matched)), of_boxes / max(1, len(matched))

    def found(
        self, logits: Logits, deltas: Deltas, regions: Planar, sides: tuple[int, int]
    ) -> tuple[Found, Float[Tensor, " found"], Integer[Tensor, " found"]]:
        """Return the boxes of one image in the plane, their scores and classes, best first.

        Args:
            logits: Of the regions.
            deltas: Of the regions.
            regions: That were proposed.
            sides: Of the image along i and j.
        """
        scores = logits.softmax(dim=1)[:, 1:]
        best, classes = self.selection.best(scores)
        corners = clipped(self.coder.decode_single(deltas[best, classes + 1], regions[best]), sides)
        scores = scores[best, classes]
        kept = self.selection.kept(corners, scores, classes)
        return corners[kept], scores[kept], classes[kept]
