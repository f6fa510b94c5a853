"""DoDNet: one residual U-Net for many partly annotated tasks, whose head is written for each task from the image."""

from collections.abc import Sequence
from math import gcd
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.networks.base import Backbone, Coarse, Features, Stage
from lightning_atlas.networks.universal import HIDDEN, Parameters, class_logits
from lightning_atlas.types import Image, Logits

ROWS = 2
"""Outputs that are written for a task: the organ, and the tumour in it."""
SIZES = (HIDDEN * HIDDEN, HIDDEN * HIDDEN, ROWS * HIDDEN, HIDDEN, HIDDEN, ROWS)
"""Numbers that are written for a task: the weights of its three layers, then their biases."""
DEPTHS = (1, 2, 2, 2, 2)
WIDTHS = (1, 2, 4, 8, 8)
"""Blocks of each layer of the encoder, and its channels as multiples of the first layer's."""
UP = ("x8_resb", "x4_resb", "x2_resb", "x1_resb")
Maps = Float[Tensor, "batch features i j k"]
Kind = Literal["organ", "tumor", "both"]


class DoDNet(Backbone):
    """Residual U-Net with standardised kernels and a head written for each task, with the published tensor names.

    Source: Zhang et al., "DoDNet: Learning to segment multi-organ and tumors from multiple partially labeled datasets",
    2021, https://arxiv.org/abs/2011.10217, and https://github.com/jianpengz/DoDNet.
    Differs: the published network is told a task for each case and answers for its organ and its tumour; this one
    answers for all tasks at once, and leaves out the outputs that no dataset has.

    Args:
        in_channels: Channels of the image.
        out_channels: Outputs; a run sets them from its classes.
        tasks: Of each task the outputs that are classes, in this order: `organ`, `tumor` or `both`; these must be
            `out_channels` together. `null`, and any other number of classes, makes each class a task of its own.
        init_filters: Channels of the very first convolution; the published network has 32.
    """

    size_multiple = 16

    def __init__(
        self, in_channels: int = 1, out_channels: int = 2, tasks: Sequence[Kind] | None = None, init_filters: int = 32
    ) -> None:
        super().__init__()
        rows = {"organ": (0,), "tumor": (1,), "both": (0, 1)}
        written = [(number, row) for number, kind in enumerate(tasks or ()) for row in rows[kind]]
        if tasks is not None and len(written) != out_channels:
            raise ValueError(
                f"the tasks {', '.join(tasks)} have {len(written)} outputs, and out_channels is {out_channels}: "
                "`both` counts twice"
            )
        self.outputs = written or [(number, 0) for number in range(out_channels)]
        widths = [init_filters * width for width in WIDTHS]
        self.coarse_features, self.fine_features = widths[-1], widths[0]
        self.conv1 = StandardisedConv3d(in_channels, init_filters, 3, padding=1, bias=False)
        for level, (above, here, depth) in enumerate(zip([init_filters, *widths], widths, DEPTHS, strict=False)):
            blocks = [
                ResidualBlock(above, here, 2 if level else 1),
                *(ResidualBlock(here, here) for _ in range(depth - 1)),
            ]
            self.add_module(f"layer{level}", nn.Sequential(*blocks))
        self.fusionConv = _normed(widths[-1], StandardisedConv3d(widths[-1], widths[-1], 1, bias=False))
        for name, below, here in zip(UP, widths[-2::-1], [*widths[-3::-1], widths[0]], strict=True):
            self.add_module(name, nn.Sequential(ResidualBlock(below, here)))
        self.precls_conv = _normed(widths[0], nn.Conv3d(widths[0], HIDDEN, 1))
        self.GAP = _normed(widths[-1], nn.AdaptiveAvgPool3d(1))
        self.controller = nn.Conv3d(widths[-1] + self._tasks, sum(SIZES), 1)

    @property
    def _tasks(self) -> int:
        return 1 + max(task for task, _ in self.outputs)

    def stages(self) -> list[Stage]:
        """Return a stage for each layer of the encoder and each level of the decoder, then what writes the head."""
        modules = [("conv1", "layer0"), *((f"layer{level}",) for level in range(1, 4)), ("layer4", "fusionConv")]
        down = [Stage(f"encoder.{level}", "encoder", names) for level, names in enumerate(modules)]
        up = [Stage(f"decoder.{level}", "decoder", (name,)) for level, name in enumerate(UP)]
        return [*down, *up, Stage("head", "head", ("GAP", "controller", "precls_conv"))]

    def output_axes(self) -> dict[str, int]:
        """Return the tensor that says which task is which; it has no bias that a class could start from."""
        return {"controller.weight": 1}

    def resize(self, outputs: int) -> None:
        """Make each class a task of its own, with a fresh controller, unless there are as many outputs already."""
        if outputs != len(self.outputs):
            self.outputs = [(number, 0) for number in range(outputs)]
            like = self.controller.weight
            controller = nn.Conv3d(self.coarse_features + outputs, sum(SIZES), 1)
            self.controller = controller.to(device=like.device, dtype=like.dtype)

    def encoded(self, image: Image) -> Coarse:
        """Return the feature maps of the deepest level."""
        return self._levels(image)[-1]

    def features(self, image: Image) -> Features:
        """Return the feature maps of the deepest level and of the last level up."""
        *skips, coarse = self._levels(image)
        fine = coarse
        for name, skip in zip(UP, reversed(skips), strict=True):
            raised = F.interpolate(fine, scale_factor=2, mode="trilinear", align_corners=False)
            fine = self.get_submodule(name)(raised + skip)
        return Features(coarse, fine)

    def forward(self, image: Image) -> Logits:
        """Return logits on the grid of the image."""
        coarse, fine = self.features(image)
        parameters = self._class_parameters(coarse)
        return class_logits(self.precls_conv(fine), parameters)

    def _levels(self, image: Image) -> list[Tensor]:
        self.check_size(image)
        found: list[Tensor] = [self.get_submodule("layer0")(self.conv1(image))]
        for level in range(1, len(DEPTHS)):
            found.append(self.get_submodule(f"layer{level}")(found[-1]))
        return [*found[:-1], self.fusionConv(found[-1])]

    def _class_parameters(self, coarse: Coarse) -> Parameters:
        seen = self.GAP(coarse)
        told = torch.eye(self._tasks, dtype=seen.dtype, device=seen.device)[:, :, None, None, None]
        both = torch.cat([seen.repeat_interleave(self._tasks, 0), told.repeat(len(seen), 1, 1, 1, 1)], dim=1)
        written = self.controller(both).flatten(1).unflatten(0, (len(seen), self._tasks))
        tasks, rows = zip(*self.outputs, strict=True)
        first, second, third, *biases = written[:, list(tasks)].split(SIZES, dim=2)
        # Of the last layer only the row of the output is taken, and its bias.
        chosen = torch.tensor(rows, device=seen.device).view(1, -1, 1)
        third = third.unflatten(2, (ROWS, HIDDEN)).take_along_dim(chosen[..., None], dim=2).squeeze(2)
        return torch.cat([first, second, third, *biases[:2], biases[2].take_along_dim(chosen, dim=2)], dim=2)


class StandardisedConv3d(nn.Conv3d):
    """A convolution whose kernels are brought to mean 0 and spread 1 each time that they are used.

    Source: Qiao et al., "Weight Standardization", 2019, https://arxiv.org/abs/1903.10520.
    """

    def forward(self, input: Maps) -> Float[Tensor, "batch outputs i2 j2 k2"]:
        """Return the convolution with the standardised kernels."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3, 4), keepdim=True)
        return self._conv_forward(input, (self.weight - mean) / torch.sqrt(variance + 1e-12), self.bias)


class ResidualBlock(nn.Module):
    """Two convolutions, each behind a norm and a rectifier, beside a shortcut.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out; where they are others, or the grid is, the shortcut has a convolution.
        stride: Of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.gn1 = _norm(inputs)
        self.conv1 = StandardisedConv3d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.gn2 = _norm(outputs)
        self.conv2 = StandardisedConv3d(outputs, outputs, 3, padding=1, bias=False)
        shortcut = StandardisedConv3d(inputs, outputs, 1, stride, bias=False)
        self.downsample = _normed(inputs, shortcut) if stride > 1 or inputs != outputs else None

    def forward(self, maps: Maps) -> Float[Tensor, "batch outputs i2 j2 k2"]:
        """Return features on the grid that the stride leaves."""
        inner = self.conv2(self.relu(self.gn2(self.conv1(self.relu(self.gn1(maps))))))
        return inner + (maps if self.downsample is None else self.downsample(maps))


def _normed(features: int, last: nn.Module) -> nn.Sequential:
    return nn.Sequential(_norm(features), nn.ReLU(inplace=True), last)


def _norm(features: int) -> nn.GroupNorm:
    """Return the published 16 groups, or fewer where these do not divide a narrower network."""
    return nn.GroupNorm(gcd(16, features), features)
