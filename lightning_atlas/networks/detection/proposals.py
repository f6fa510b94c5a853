"""The first stage of Faster R-CNN: where in a plane something lies, of whatever class."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from monai.apps.detection.utils.box_coder import BoxCoder
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.networks.detection.anchors import grid_anchors
from lightning_atlas.networks.detection.matching import OverlapMatcher
from lightning_atlas.networks.detection.sampling import Sampling
from lightning_atlas.networks.detection.suppression import BoxSelection, clipped

Level = Float[Tensor, "batch features _i _j"]
Planar = Float[Tensor, "boxes 4"]


class ProposalHead(nn.Module):
    """Says of each anchor whether something lies there, and how its box lies beside the anchor.

    Source: Ren et al., "Faster R-CNN", 2015, https://arxiv.org/abs/1506.01497; names as in mmdetection.

    Args:
        features: Channels of each level.
        anchors: At each voxel of a level.
    """

    def __init__(self, features: int, anchors: int) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(features, features, 3, padding=1)
        self.rpn_cls = nn.Conv2d(features, anchors, 1)
        self.rpn_reg = nn.Conv2d(features, anchors * 4, 1)
        for layer in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(
        self, levels: list[Level]
    ) -> tuple[list[Float[Tensor, "batch _anchors"]], list[Float[Tensor, "batch _anchors 4"]]]:
        """Return logits and deltas of each level, voxel after voxel."""
        inner = [F.relu(self.rpn_conv(level)) for level in levels]
        logits = [self.rpn_cls(each).permute(0, 2, 3, 1).flatten(1) for each in inner]
        deltas = [self.rpn_reg(each).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)) for each in inner]
        return logits, deltas


class Proposing:
    """How the first stage of a `SliceDetector` learns, and what it hands on.

    Args:
        anchor_voxels: Side of a square anchor in voxels of its level; as published, 4.
        ratios: Of an anchor's side along j to that along i.
        foreground: Overlap with a box from which an anchor shall find it.
        background: Overlap below which it shall find nothing.
        samples: Anchors of an image that are learned from, up to half of which shall find a box.
        selection: What is handed on of each image; by default a thousand, of the thousand best of each level those
            that overlap by no more than 0.7.
        beta: Below this difference the cost of a delta is a square; 0 leaves it straight (L1).
    """

    def __init__(
        self,
        anchor_voxels: float = 4.0,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        foreground: float = 0.7,
        background: float = 0.3,
        samples: int = 256,
        selection: BoxSelection | None = None,
        beta: float = 0.0,
    ) -> None:
        self.anchor_voxels, self.ratios = anchor_voxels, tuple(ratios)
        self.sampling = Sampling(OverlapMatcher(foreground, background, rescue=background), samples, 0.5)
        self.selection = selection or BoxSelection(least_score=0.0, overlap=0.7, most=1000)
        self.coder = BoxCoder(weights=(1.0,) * 4)
        self.beta = beta

    def anchors(self, levels: list[Level], reductions: Sequence[tuple[int, int]]) -> list[Float[Tensor, "_anchors 4"]]:
        """Return the anchors of each level."""
        found = []
        for level, reduction in zip(levels, reductions, strict=True):
            side = self.anchor_voxels * max(reduction)
            shapes = [(side / ratio**0.5, side * ratio**0.5) for ratio in self.ratios]
            found.append(grid_anchors(level.shape[2:], reduction, shapes, level.device))
        return found

    @torch.no_grad()
    def proposals(
        self,
        logits: list[Float[Tensor, " _anchors"]],
        deltas: list[Float[Tensor, "_anchors 4"]],
        anchors: list[Float[Tensor, "_anchors 4"]],
        sides: tuple[int, int],
    ) -> Planar:
        """Return what is handed on of one image, best first.

        Args:
            logits: Of the anchors of each level.
            deltas: Of the same.
            anchors: Of each level.
            sides: Of the image along i and j.
        """
        corners, scores = [], []
        for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
            level_scores = level_logits.float().sigmoid()
            best, _ = self.selection.best(level_scores[:, None])
            decoded = self.coder.decode_single(level_deltas[best].float(), level_anchors[best])
            found, level_scores = clipped(decoded, sides), level_scores[best]
            kept = self.selection.kept(found, level_scores, torch.zeros_like(best))
            corners.append(found[kept])
            scores.append(level_scores[kept])
        order = torch.cat(scores).argsort(descending=True, stable=True)[: self.selection.most]
        return torch.cat(corners)[order]

    def losses(
        self,
        logits: Float[Tensor, " anchors"],
        deltas: Float[Tensor, "anchors 4"],
        anchors: list[Float[Tensor, "_anchors 4"]],
        boxes: Planar,
    ) -> tuple[Tensor, Tensor]:
        """Return what one image costs: the mean over the sampled anchors, of the logits and of the boxes.

        Args:
            logits: Of all anchors.
            deltas: Of all anchors.
            anchors: Of each level.
            boxes: To be found.
        """
        every = torch.cat(anchors)
        asked, matched = self.sampling(boxes, every)
        wanted = (matched >= 0).to(logits.dtype)
        of_logits = F.binary_cross_entropy_with_logits(logits[asked], wanted)
        hits = matched >= 0
        aims = self.coder.encode_single(boxes[matched[hits]], every[asked][hits])
        of_boxes = F.smooth_l1_loss(deltas[asked][hits], aims, reduction="sum", beta=self.beta)
        return of_logits, of_boxes / max(1, len(asked))
