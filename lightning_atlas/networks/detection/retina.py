"""RetinaNet over the encoder of a 3D network: boxes in three dimensions, in one stage."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from monai.apps.detection.networks.retinanet_network import RetinaNetClassificationHead, RetinaNetRegressionHead
from monai.apps.detection.utils.box_coder import BoxCoder
from torch import Tensor

from lightning_atlas.networks.base import Network, Stage, held_stages
from lightning_atlas.networks.detection.anchors import grid_anchors
from lightning_atlas.networks.detection.base import Detector, chosen_levels, pyramid_of
from lightning_atlas.networks.detection.box_losses import AnchorLoss
from lightning_atlas.networks.detection.fpn import FeaturePyramid
from lightning_atlas.networks.detection.matching import AdaptiveMatcher, Matcher
from lightning_atlas.networks.detection.suppression import BoxSelection, clipped
from lightning_atlas.types import Boxes, Image

ANCHOR_VOXELS = 4.0
"""Side of an anchor, a cube of the image, in voxels of its level along the axis on which these are largest.
Source: RetinaNet, whose finest level has a stride of 8, sides of 32."""


class RetinaAnswer(NamedTuple):
    """What a `RetinaDetector` says, level after level.

    Args:
        logits: Of each class at each anchor.
        deltas: How the box lies beside the anchor, in the words of MONAI's coder.
        anchors: The same in all images.
        sides: Of the images.
    """

    logits: list[Float[Tensor, "batch _anchors classes"]]
    deltas: list[Float[Tensor, "batch _anchors 6"]]
    anchors: list[Float[Tensor, "_anchors 6"]]
    sides: tuple[int, ...]


class RetinaDetector(Detector):
    """RetinaNet in three dimensions: MONAI's heads on a feature pyramid over the encoder of a network.

    Its encoder has the names of the network that it holds, behind `backbone.`, so that weights of a segmentation fill
    it; the decoder is taken out. The heads have the names of MONAI's `RetinaNet`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, https://arxiv.org/abs/1708.02002; heads and coder
    of MONAI, matching and sampling as in its lung nodule detection and in nnDetection
    (https://arxiv.org/abs/2106.00817).
    Differs: every image weighs the same in the loss, however many boxes it has.

    Args:
        network: Whose encoder is used: one that gives its features on several grids, such as `UNet` or `R3D`.
        out_channels: Classes; a run sets them from its data.
        levels: Which grids of the encoder are used (0: the finest, -1: the coarsest), the coarsest among them.
        features: Channels of the pyramid and the heads, a multiple of 8.
        anchors: Sides along i, j, k, in voxels of the image, of the boxes on the finest grid from which answers are
            counted; each coarser grid has larger ones. By default a cube, its side four voxels of the grid along the
            axis on which these are largest.
        matcher: Which anchors shall find a box; `AdaptiveMatcher` by default.
        loss: Of the answers; that of hard negatives and of the generalised overlap by default.
        selection: Which answers are kept; see `BoxSelection`.

    Raises:
        ValueError: The network has no such grids, or the sizes do not fit.
    """

    class_bias = "classification_head.cls_logits.bias"

    def __init__(
        self,
        network: Network,
        out_channels: int = 1,
        levels: Sequence[int] = (-3, -2, -1),
        features: int = 128,
        anchors: Sequence[Sequence[float]] | None = None,
        matcher: Matcher | None = None,
        loss: AnchorLoss | None = None,
        selection: BoxSelection | None = None,
    ) -> None:
        super().__init__()
        self.backbone = pyramid_of(network, type(self).__name__)
        self.levels = chosen_levels(self.backbone, levels)
        if features < 8 or features % 8:
            raise ValueError(f"the heads have norms of 8 groups: features is {features}, give a multiple of 8")
        self.size_offset = network.size_offset
        self.neck = FeaturePyramid([self.backbone.level_features[level] for level in self.levels], features, axes=3)
        cube = (ANCHOR_VOXELS * max(self.backbone.reductions()[self.levels[0]]),) * 3
        self.shapes = [tuple(float(side) for side in sides) for sides in anchors or [cube]]
        self.classification_head = RetinaNetClassificationHead(features, len(self.shapes), out_channels, 3)
        self.regression_head = RetinaNetRegressionHead(features, len(self.shapes), 3)
        self.coder = BoxCoder(weights=(1.0,) * 6)
        self.matcher, self.loss = matcher or AdaptiveMatcher(), loss or AnchorLoss()
        self.selection = selection or BoxSelection(least_score=0.02, overlap=0.22)

    @property
    def size_multiple(self) -> int | tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the network that it holds; it changes with the policy along k."""
        return self.backbone.size_multiple

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        return self.classification_head.num_classes

    def stages(self) -> list[Stage]:
        """Return the stages of the encoder, then the feature pyramid, then the heads."""
        heads = Stage("head", "head", ("classification_head", "regression_head"))
        return [*held_stages(self.backbone), Stage("neck", "decoder", ("neck",)), heads]

    def conventions(self) -> dict[str, str]:
        """Return those of the network that it holds."""
        return self.backbone.conventions()

    def output_axes(self) -> dict[str, int]:
        """Return the tensors of the last layer of the classes, which lie one after the other for each anchor."""
        return {"classification_head.cls_logits.weight": 0, "classification_head.cls_logits.bias": 0}

    def output_names(self, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the classes again for each shape of the anchors; there is no background."""
        return dict.fromkeys(self.output_axes(), tuple(classes) * len(self.shapes))

    def resize(self, outputs: int) -> None:
        """Tell that many classes apart, with a fresh last layer, unless there are as many already."""
        head = self.classification_head
        if outputs != head.num_classes:
            like = head.cls_logits.weight
            fresh = RetinaNetClassificationHead(like.shape[1], len(self.shapes), outputs, 3)
            head.cls_logits = fresh.cls_logits.to(like.device, like.dtype)
            head.num_classes = outputs

    def check_size(self, image: Image) -> None:
        """Refuse what the network that it holds refuses."""
        self.backbone.check_size(image)

    def forward(self, image: Image, truth: list[Boxes] | None = None) -> RetinaAnswer:
        """Return logits and deltas at the anchors of each level."""
        levels = self.backbone.levels(image)
        maps = self.neck([levels[level] for level in self.levels])
        logits = [by_anchor(each, self.classes) for each in self.classification_head(maps)]
        deltas = [by_anchor(each, 6) for each in self.regression_head(maps)]
        reductions = self.backbone.reductions()
        coarsest = [max(reductions[level]) for level in self.levels]
        anchors = [
            grid_anchors(
                each.shape[2:],
                reductions[level],
                [[side * most / coarsest[0] for side in sides] for sides in self.shapes],
                image.device,
                image.shape[2:],
            )
            for each, level, most in zip(maps, self.levels, coarsest, strict=True)
        ]
        return RetinaAnswer(logits, deltas, anchors, tuple(image.shape[2:]))

    def losses(self, answer: RetinaAnswer, truth: list[Boxes]) -> dict[str, Tensor]:
        """Return the cost of the classes and of the boxes, each the mean over the images."""
        anchors, counts = torch.cat(answer.anchors), [len(each) for each in answer.anchors]
        logits, deltas = torch.cat(answer.logits, dim=1).float(), torch.cat(answer.deltas, dim=1).float()
        parts = []
        for number, (corners, classes, _) in enumerate(truth):
            matched = self.matcher(corners, anchors, counts, len(self.shapes))
            of_classes = self.loss.of_classes(logits[number], matched, classes)
            parts.append((of_classes, self.loss.of_boxes(deltas[number], anchors, matched, corners, self.coder)))
        of_classes, of_boxes = zip(*parts, strict=True)
        return {"classes": torch.stack(of_classes).mean(), "boxes": torch.stack(of_boxes).mean()}

    @torch.no_grad()
    def found(self, answer: RetinaAnswer) -> list[Boxes]:
        """Return the boxes of each image, best first."""
        return [self._found(answer, number) for number in range(len(answer.logits[0]))]

    def _found(self, answer: RetinaAnswer, number: int) -> Boxes:
        corners, scores, classes = [], [], []
        for logits, deltas, anchors in zip(answer.logits, answer.deltas, answer.anchors, strict=True):
            level = logits[number].float().sigmoid()
            best, class_of = self.selection.best(level)
            decoded = self.coder.decode_single(deltas[number][best].float(), anchors[best])
            corners.append(clipped(decoded, answer.sides))
            scores.append(level[best, class_of])
            classes.append(class_of)
        every, told = Boxes(torch.cat(corners), torch.cat(classes)), torch.cat(scores)
        return every._replace(scores=told).chosen(self.selection.kept(every.corners, told, every.classes))


def by_anchor(maps: Float[Tensor, "batch _outputs i j k"], values: int) -> Float[Tensor, "batch _anchors values"]:
    """Return the outputs of a head voxel after voxel, and there anchor after anchor.

    Args:
        maps: As the head gives them.
        values: Of each anchor.
    """
    return maps.flatten(2).unflatten(1, (-1, values)).permute(0, 3, 1, 2).flatten(1, 2)
