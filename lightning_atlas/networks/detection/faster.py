"""Faster R-CNN over the slices of a 3D encoder: boxes in the plane, from what lies above and below it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from lightning_atlas.networks.base import Maps, Network, Stage, held_stages
from lightning_atlas.networks.collapse import Collapse, depth_collapse
from lightning_atlas.networks.depth import DepthAware
from lightning_atlas.networks.detection.base import BACKGROUND, Detector, chosen_levels, pyramid_of
from lightning_atlas.networks.detection.box_head import CELLS, BoxHead, Refining
from lightning_atlas.networks.detection.fpn import FeaturePyramid
from lightning_atlas.networks.detection.proposals import ProposalHead, Proposing
from lightning_atlas.networks.detection.roi_align import roi_align
from lightning_atlas.types import Boxes, Image

PLANE = [0, 1, 3, 4]
"""The corners of a box that lie in the plane of i and j."""
FINEST_VOXELS = 14
"""A region is read from the coarsest grid on which the side of a square of its area is at least this many voxels.
Source: 56 voxels of the image on the grid that is four times coarser, as in mmdetection."""

Planar = Float[Tensor, "_boxes 4"]


class SliceAnswer(NamedTuple):
    """What a `SliceDetector` says.

    Args:
        logits: Of the first stage, level after level: whether something lies at an anchor.
        deltas: How its box lies beside the anchor.
        anchors: The same in all images.
        regions: Of each image, what the second stage looked at.
        matched: What each of them shall find, where there was something to learn.
        region_logits: Of all regions of all images; output 0 is the background.
        region_deltas: Of the same, for each class.
        sides: Of the images.
    """

    logits: list[Float[Tensor, "batch _anchors"]]
    deltas: list[Float[Tensor, "batch _anchors 4"]]
    anchors: list[Float[Tensor, "_anchors 4"]]
    regions: list[Planar]
    matched: list[Integer[Tensor, " _boxes"]] | None
    region_logits: Float[Tensor, "regions outputs"]
    region_deltas: Float[Tensor, "regions outputs 4"]
    sides: tuple[int, ...]


class SliceDetector(Detector):
    """Faster R-CNN on a feature pyramid in two dimensions, to which a 3D encoder's slices are collapsed: MP3D FPN.

    Its boxes lie in the plane of i and j and reach over the whole depth of the image. With three slices it learns from
    pictures, with nine it finds lesions in the slice in the middle. Its tensors have the names of mmdetection 1, in
    which the published weights are; those of the encoder lie behind `backbone.`.

    Source: Zhang et al., "Revisiting 3D Context Modeling with Supervised Pre-training for Universal Lesion Detection in
    CT Slices", 2020, https://arxiv.org/abs/2012.08770; Ren et al., "Faster R-CNN", 2015,
    https://arxiv.org/abs/1506.01497; Lin et al., https://arxiv.org/abs/1612.03144. Defaults as in
    https://github.com/urmagicsmine/MP3D, or in mmdetection where that says nothing.
    Differs: every image weighs the same in the loss; boxes end behind their last voxel, so that no widths are one
    larger; regions are read with the half-voxel shift, at a fixed number of points.

    Args:
        network: Whose encoder is used: one that gives its features on several grids, such as `P3D`.
        out_channels: Classes; a run sets them from its data.
        slices: Of the image. Only a collapse with weights depends on it: `group` and `full`.
        collapse: How the slices of each level become one: the `centre` one, a weight for each slice of each channel
            (`group`), their `mean`, or a `full` kernel. `RetinaDetector` keeps them all.
        levels: Which grids of the encoder are used (0: the finest, -1: the coarsest), the coarsest among them.
        features: Channels of the pyramid and the heads.
        first: How the first stage learns and what it hands on; see `Proposing`.
        second: How the second stage learns and what is kept of its answers; see `Refining`.

    Raises:
        ValueError: The network has no such grids.
    """

    planar = True
    class_bias = "bbox_head.fc_cls.bias"

    def __init__(
        self,
        network: Network,
        out_channels: int = 1,
        slices: int = 9,
        collapse: Collapse = "centre",
        levels: Sequence[int] = (-4, -3, -2, -1),
        features: int = 256,
        first: Proposing | None = None,
        second: Refining | None = None,
    ) -> None:
        super().__init__()
        self.backbone = pyramid_of(network, type(self).__name__)
        self.levels = chosen_levels(self.backbone, levels)
        self.size_offset = network.size_offset
        self.first, self.second = first or Proposing(), second or Refining()
        widths, depths = [self.backbone.level_features[level] for level in self.levels], self._depths(slices)
        self.collapse = LevelCollapse(collapse, widths, depths)
        self.neck = FeaturePyramid(widths, features, axes=2, further=1)
        self.rpn_head = ProposalHead(features, len(self.first.ratios))
        self.bbox_head = BoxHead(features, out_channels)

    @property
    def size_multiple(self) -> int | tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the network that it holds; it changes with the policy along k."""
        return self.backbone.size_multiple

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        return self.bbox_head.fc_cls.out_features - 1

    def stages(self) -> list[Stage]:
        """Return the stages of the encoder, then the collapse and the feature pyramid, then the heads."""
        neck = Stage("neck", "decoder", ("collapse", "neck"))
        return [*held_stages(self.backbone), neck, Stage("head", "head", ("rpn_head", "bbox_head"))]

    def conventions(self) -> dict[str, str]:
        """Return those of the network that it holds."""
        return self.backbone.conventions()

    def output_axes(self) -> dict[str, int]:
        """Return the tensors of the last layers of the second stage."""
        return {f"bbox_head.{layer}.{each}": 0 for layer in ("fc_cls", "fc_reg") for each in ("weight", "bias")}

    def output_names(self, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return background and classes, each once for the logits and four times for the deltas."""
        logits = BACKGROUND, *classes
        deltas = tuple(name for name in logits for _ in range(4))
        return {name: deltas if "fc_reg" in name else logits for name in self.output_axes()}

    def resize(self, outputs: int) -> None:
        """Tell that many classes apart, with fresh last layers, unless there are as many already."""
        if outputs != self.classes:
            self.bbox_head.resize(outputs)

    def check_size(self, image: Image) -> None:
        """Refuse what the network that it holds refuses."""
        self.backbone.check_size(image)

    def forward(self, image: Image, truth: list[Boxes] | None = None) -> SliceAnswer:
        """Return what both stages say; with the truth, the second one of regions that are worth learning from."""
        found = self.backbone.levels(image)
        levels = self.neck(self.collapse([found[level] for level in self.levels]))
        logits, deltas = self.rpn_head(levels)
        reductions = self._reductions()
        anchors = self.first.anchors(levels, reductions)
        sides = image.shape[2], image.shape[3]
        regions = [
            self.first.proposals([each[number] for each in logits], [each[number] for each in deltas], anchors, sides)
            for number in range(len(image))
        ]
        matched = None
        if truth is not None:
            sampled = [
                self.second.sampled(each, boxes.corners[:, PLANE]) for each, boxes in zip(regions, truth, strict=True)
            ]
            regions, matched = [each for each, _ in sampled], [each for _, each in sampled]
        aligned = [
            self.aligned([level[number] for level in levels[: len(self.levels)]], reductions, each)
            for number, each in enumerate(regions)
        ]
        region_logits, region_deltas = self.bbox_head(torch.cat(aligned).to(image.dtype))
        return SliceAnswer(
            logits, deltas, anchors, regions, matched, region_logits, region_deltas, tuple(image.shape[2:])
        )

    def losses(self, answer: SliceAnswer, truth: list[Boxes]) -> dict[str, Tensor]:
        """Return the cost of both stages, of each the classes and the boxes, each the mean over the images.

        Raises:
            ValueError: The answer was given without the truth.
        """
        if answer.matched is None:
            raise ValueError(
                "SliceDetector learns from regions that it chooses by the boxes to be found, and these were not given: "
                "call network(image, truth) in place of network(image)"
            )
        logits, deltas = torch.cat(answer.logits, dim=1).float(), torch.cat(answer.deltas, dim=1).float()
        counts = [len(each) for each in answer.regions]
        of_regions = zip(
            answer.region_logits.float().split(counts), answer.region_deltas.float().split(counts), strict=True
        )
        parts = []
        for number, (region_logits, region_deltas) in enumerate(of_regions):
            corners, classes = truth[number].corners[:, PLANE], truth[number].classes
            regions, matched = answer.regions[number], answer.matched[number]
            first = self.first.losses(logits[number], deltas[number], answer.anchors, corners)
            second = self.second.losses(region_logits, region_deltas, regions, matched, corners, classes)
            parts.append(torch.stack([*first, *second]))
        names = ("proposals", "proposal_boxes", "classes", "boxes")
        return dict(zip(names, torch.stack(parts).mean(dim=0), strict=True))

    @torch.no_grad()
    def found(self, answer: SliceAnswer) -> list[Boxes]:
        """Return the boxes of each image, best first."""
        counts = [len(each) for each in answer.regions]
        logits, deltas = answer.region_logits.float().split(counts), answer.region_deltas.float().split(counts)
        sides, depth = (answer.sides[0], answer.sides[1]), float(answer.sides[2])
        result = []
        for each in zip(logits, deltas, answer.regions, strict=True):
            corners, scores, classes = self.second.found(*each, sides)
            (i0, j0, i1, j1), bottom = corners.unbind(1), torch.zeros_like(scores)
            result.append(Boxes(torch.stack([i0, j0, bottom, i1, j1, bottom + depth], dim=1), classes, scores))
        return result

    def aligned(
        self, levels: list[Float[Tensor, "features _i _j"]], reductions: list[tuple[int, int]], regions: Planar
    ) -> Float[Tensor, "_boxes features cells cells"]:
        """Return the features under each region of one image, from the grid that suits its size.

        Args:
            levels: Of the pyramid, without what lies below the encoder's coarsest grid.
            reductions: Of the levels.
            regions: In the plane.
        """
        low, high = regions.chunk(2, dim=1)
        side = (high - low).prod(dim=1).sqrt() / (FINEST_VOXELS * max(reductions[0]))
        steps = side.new_tensor([max(each) / max(reductions[0]) for each in reductions[: len(levels)]])
        # mmdetection adds as little, so that a side of exactly twice as much lies on the next grid.
        coarsest = (torch.searchsorted(steps, side + 1e-6, right=True) - 1).clamp(min=0)
        found = levels[0].new_zeros(len(regions), levels[0].shape[0], CELLS, CELLS, dtype=torch.float32)
        for number, level in enumerate(levels):
            here = (coarsest == number).nonzero()[:, 0]
            found = found.index_copy(0, here, roi_align(level, regions[here], reductions[number], CELLS))
        return found

    def _reductions(self) -> list[tuple[int, int]]:
        every = self.backbone.reductions()
        planes = [(every[level][0], every[level][1]) for level in self.levels]
        i, j = planes[-1]
        return [*planes, (2 * i, 2 * j)]

    def _depths(self, slices: int) -> list[int]:
        if isinstance(self.backbone, DepthAware):
            every = self.backbone.level_depths(slices)
            return [every[level] for level in self.levels]
        reductions = self.backbone.reductions()
        return [-(-slices // reductions[level][2]) for level in self.levels]


class LevelCollapse(nn.Module):
    """Takes the slices of each level to one plane.

    Args:
        how: As in `SliceDetector`.
        channels: Of each level.
        depths: Slices of each level.
    """

    def __init__(self, how: Collapse, channels: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        for number, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            self.add_module(str(number), depth_collapse(how, width, depth))

    def forward(self, levels: list[Maps]) -> list[Tensor]:
        """Return the planes."""
        return [each(level)[..., 0] for each, level in zip(self.children(), levels, strict=True)]
