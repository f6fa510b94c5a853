"""A segmentation network whose head is written, class by class, from text features and the image."""

from math import gcd

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_atlas.networks.base import Backbone, Coarse, Encoding, Stage, held_stages
from lightning_atlas.types import Image, Logits

Voxels = Float[Tensor, "batch hidden voxels"]
Parameters = Float[Tensor, "batch classes parameters"]

HIDDEN = 8
"""Channels between the three layers that a class gets of its own."""
SIZES = (HIDDEN * HIDDEN, HIDDEN * HIDDEN, HIDDEN, HIDDEN, HIDDEN, 1)
"""Numbers that are written for a class: the weights of its three layers, then their biases."""
VOXELS_AT_ONCE = 2**16
"""The layers of the classes go over so many voxels at a time: all at once they would need 16 maps for each class."""


class UniversalNetwork(Encoding):
    """A backbone whose head is three small layers for each class, written from the class's text features and the image.

    Source: Liu et al., "CLIP-Driven Universal Model for Organ Segmentation and Tumor Detection", 2023,
    https://arxiv.org/abs/2301.00785; the published weights of SuPreM (Li et al., 2024) are of this kind as well.
    Differs: computes all cases and classes together, part of the voxels at a time.

    `organ_embedding` has a row for each class and does not learn. In published weights a row holds CLIP's features of
    "A computerized tomography of a {class}"; a class that they do not know gets a random row, which tells it from the
    others and means nothing. All other tensors are shared by all classes.

    Args:
        backbone: `GenesisUNet` or `SwinUNETR`; its own head is taken off.
        out_channels: Outputs; a run sets them from its classes.
        text_features: Numbers in the text features of a class.
        condition_features: Numbers to which text and image are each reduced before the layers are written from them.
    """

    organ_embedding: Float[Tensor, "classes text_features"]

    def __init__(
        self, backbone: Backbone, out_channels: int = 32, text_features: int = 512, condition_features: int = 256
    ) -> None:
        super().__init__()
        for name in (name for stage in backbone.stages() if stage.part == "head" for name in stage.modules):
            backbone.set_submodule(name, nn.Identity())
        self.backbone = backbone
        self.size_multiple = backbone.size_multiple
        coarse, fine = backbone.coarse_features, backbone.fine_features
        self.coarse_features = coarse
        self.skip_modules = tuple(f"backbone.{name}" for name in backbone.skip_modules)
        self.register_buffer("organ_embedding", torch.randn(out_channels, text_features))
        self.precls_conv = nn.Sequential(_norm(fine), nn.ReLU(inplace=True), nn.Conv3d(fine, HIDDEN, kernel_size=1))
        self.GAP = nn.Sequential(
            _norm(coarse),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(coarse, condition_features, kernel_size=1),
        )
        self.controller = nn.Conv3d(2 * condition_features, sum(SIZES), kernel_size=1)
        self.text_to_vision = nn.Linear(text_features, condition_features)

    def stages(self) -> list[Stage]:
        """Return the stages of the backbone without its head, then the text head."""
        head = ("text_to_vision", "GAP", "controller", "precls_conv", "organ_embedding")
        return [*held_stages(self.backbone, ("encoder", "decoder")), Stage("head", "head", head)]

    def conventions(self) -> dict[str, str]:
        """Return those of the backbone."""
        return self.backbone.conventions()

    def output_axes(self) -> dict[str, int]:
        """Return the one tensor with a row for each class; it has no bias that a class could start from."""
        return {"organ_embedding": 0}

    def resize(self, outputs: int) -> None:
        """Draw new rows for so many classes, unless there are as many already; everything else fits any number."""
        old = self.organ_embedding
        if outputs != len(old):
            self.organ_embedding = torch.randn(outputs, old.shape[1], dtype=old.dtype, device=old.device)

    def encoded(self, image: Image) -> Coarse:
        """Return what lies at the end of the backbone's encoder."""
        return self.backbone.encoded(image)

    def forward(self, image: Image) -> Logits:
        """Return logits on the grid of the image."""
        coarse, fine = self.backbone.features(image)
        return class_logits(self.precls_conv(fine), self._class_parameters(coarse))

    def _class_parameters(self, coarse: Float[Tensor, "batch coarse i j k"]) -> Parameters:
        text = F.relu(self.text_to_vision(self.organ_embedding))
        seen = self.GAP(coarse).flatten(1)
        both = torch.cat([seen[:, None].expand(-1, len(text), -1), text.expand(len(seen), -1, -1)], dim=2)
        written = self.controller(both.flatten(0, 1)[:, :, None, None, None])
        return written.flatten(1).unflatten(0, (len(seen), len(text)))


def class_logits(maps: Float[Tensor, "batch hidden i j k"], parameters: Parameters) -> Logits:
    """Apply to each case the three layers of each class, part of the voxels at a time.

    Args:
        maps: What all classes of a case start from.
        parameters: As `class_layers` takes them.
    """
    voxels = maps.flatten(2).split(VOXELS_AT_ONCE, dim=2)
    if torch.is_grad_enabled():
        apart = [
            checkpoint(class_layers, part, parameters, use_reentrant=False, preserve_rng_state=False) for part in voxels
        ]
    else:
        apart = [class_layers(part, parameters) for part in voxels]
    return torch.cat(apart, dim=2).unflatten(2, maps.shape[2:])


def class_layers(features: Voxels, parameters: Parameters) -> Float[Tensor, "batch classes voxels"]:
    """Apply to each case the three layers of each class, with rectifiers between them.

    Args:
        features: What all classes of a case start from.
        parameters: Of each case and class, in the order of `SIZES`; a weight is written row by row (output by output).
    """
    batch, classes, _ = parameters.shape
    first, second, third, *biases = parameters.split(SIZES, dim=2)
    bias_1, bias_2, bias_3 = (bias.reshape(batch * classes, -1, 1) for bias in biases)
    hidden = torch.baddbmm(bias_1.reshape(batch, -1, 1), first.reshape(batch, -1, HIDDEN), features).relu_()
    hidden = hidden.reshape(batch * classes, HIDDEN, -1)
    hidden = torch.baddbmm(bias_2, second.reshape(-1, HIDDEN, HIDDEN), hidden).relu_()
    return torch.baddbmm(bias_3, third.reshape(-1, 1, HIDDEN), hidden).reshape(batch, classes, -1)


def _norm(features: int) -> nn.GroupNorm:
    """Return the published 16 groups, or fewer where these do not divide a narrower network."""
    return nn.GroupNorm(gcd(16, features), features)
