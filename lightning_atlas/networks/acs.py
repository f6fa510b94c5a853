"""Flat kernels laid into three planes of a volume, so that 2D weights serve a 3D network as they are."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.networks.depth import PRESERVE, Conv3d, DepthPolicy, with_slices_repeated
from lightning_atlas.networks.r3d import R3D, Norm

Kernels = Literal["acs", "soft", "mean"]
Maps = Float[Tensor, "batch features i j k"]
Convolved = Float[Tensor, "batch outputs out_i out_j out_k"]
Kernel = Float[Tensor, "outputs inputs rows columns"]
FLAT_ALONG = (2, 1, 0)
"""The axis along which each view is one voxel thick: axial, coronal, sagittal."""


class ACSConv3d(Conv3d):
    """Convolution with a flat kernel in three planes; its weight is that of a 2D convolution, (rows, columns).

    `acs`: of the output channels the first third sees axial planes, the next coronal and the last sagittal ones, and
    where they do not divide by three the first ones get one more; with groups, whole groups are dealt out so. `mean`:
    every channel sees all three, and is their mean. `soft`: their weighted mean, by a softmax over three numbers for
    each channel, `views`, which start equal.

    Rows of the kernel lie along j in axial planes and along k in the others; columns along j in sagittal planes and
    along i in the others.

    Source: Yang et al., "Reinventing 2D Convolutions for 3D Images", 2021, https://arxiv.org/abs/1911.10477.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel_size: Voxels along both sides of the kernel, an odd number.
        stride: Along i, j, k.
        dilation: Along all axes.
        groups: As in a convolution.
        bias: Whether there is one.
        kernels: `acs`, `soft` or `mean`.

    Raises:
        ValueError: The side of the kernel is even, so that its views would not lie around the same voxel.
    """

    further_axes: ClassVar[dict[str, int]] = {"views": 1}
    """Along which axis the outputs lie of what is neither weight nor bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        stride: int | tuple[int, int, int] = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        kernels: Kernels = "acs",
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(
                f"a kernel of {kernel_size} x {kernel_size} has no middle where planes could cross: take one of "
                f"{kernel_size - 1} or {kernel_size + 1}, or kernels: slice"
            )
        padding = dilation * (kernel_size // 2)
        super().__init__(inputs, outputs, 1, stride, padding, dilation, groups, bias)
        self.kernel_size = (kernel_size,) * 3
        self.weight = nn.Parameter(self.weight.new_empty(outputs, inputs // groups, kernel_size, kernel_size))
        self.kernels: Kernels = kernels
        self.views = nn.Parameter(self.weight.new_zeros(3, outputs)) if kernels == "soft" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw kernel and bias anew, and weigh the views alike."""
        super().reset_parameters()
        views = getattr(self, "views", None)  # torch calls this before there are any
        if views is not None:
            nn.init.zeros_(views)

    def forward(self, input: Maps) -> Convolved:
        """Return the convolved features."""
        if self.kernels == "acs":
            dealt = thirds(self.groups if self.groups > 1 else self.out_channels)
            starts = [sum(dealt[:view]) for view in range(3)]
            parts = zip(FLAT_ALONG, starts, dealt, strict=True)
            return torch.cat([self._seen(input, axis, start, count) for axis, start, count in parts if count], dim=1)
        seen = [self._seen(input, axis) for axis in FLAT_ALONG]
        if self.views is None:
            return (seen[0] + seen[1] + seen[2]) / 3
        shares = self.views.softmax(0).view(3, -1, 1, 1, 1).unbind()
        return seen[0] * shares[0] + seen[1] * shares[1] + seen[2] * shares[2]

    def _seen(self, input: Maps, axis: int, start: int = 0, count: int | None = None) -> Convolved:
        """Return what one view gives: of all outputs, or of `count` outputs (groups, where there are several)."""
        weight, bias, groups = self.weight, self.bias, self.groups
        if count is not None:
            each = self.out_channels // groups if groups > 1 else 1
            rows = slice(start * each, (start + count) * each)
            weight, bias = weight[rows], bias if bias is None else bias[rows]
            if groups > 1:
                wide = self.in_channels // groups
                input, groups = input[:, start * wide : (start + count) * wide], count
        padding = [0 if each == axis else int(self.padding[each]) for each in range(3)]
        input, padding = self._padded(input, padding)
        return F.conv3d(input, in_plane(weight, axis), bias, self.stride, padding, self.dilation, groups)

    def _padded(self, input: Maps, padding: list[int]) -> tuple[Tensor, list[int]]:
        """Return the features with what is no zero beyond their faces, and the zeros that are left to add."""
        if self.padding_mode != "zeros":
            sides = [side for each in reversed(padding) for side in (each, each)]
            return F.pad(input, sides, mode=self.padding_mode), [0, 0, 0]
        along = padding[2]
        if self.depth_padding == "replicate" and along:
            return with_slices_repeated(input, along), [*padding[:2], 0]
        return input, padding


def in_plane(kernel: Kernel, axis: int = 2) -> Float[Tensor, "outputs inputs i j k"]:
    """Return a flat kernel in the plane across one of the axes i, j, k, one voxel thick along it.

    A picture's rows lie along j and its columns along i; in a plane that has k, its rows lie along k.

    Args:
        kernel: Of a 2D convolution.
        axis: 0, 1 or 2.
    """
    return kernel.transpose(2, 3).unsqueeze(2 + axis)


def thirds(count: int) -> tuple[int, int, int]:
    """Return how many of `count` fall to each of three, the first ones getting one more where it does not divide."""
    return (count + 2) // 3, (count + 1) // 3, count // 3


class ACSResNet(R3D):
    """`R3D` with flat kernels in three planes: its tensors have the names and the shapes of a 2D ResNet.

    Kernels of one voxel stay as they are, (1, 1, 1) in shape; a file of a 2D network fills all of it with
    `adapters: [Inflation]`.

    Source: Yang et al., "Reinventing 2D Convolutions for 3D Images", 2021, https://arxiv.org/abs/1911.10477.

    Args:
        in_channels: Channels of the image.
        depth: Layers: 18, 34, or with bottlenecks 50, 101, 152.
        norm: As in `R3D`.
        strides: As in `R3D`.
        depth_policy: As in `R3D`.
        features: As in `R3D`.
        kernels: How the channels see the three planes: `acs`, `soft` or `mean`, see `ACSConv3d`; or `slice`: kernels
            in each slice alone, (k, k, 1), so that slices meet in the first pool only (2.5D).
    """

    def __init__(
        self,
        in_channels: int = 1,
        depth: Literal[18, 34, 50, 101, 152] = 18,
        norm: Norm = "batch",
        strides: Sequence[int] = (2, 2, 1, 2, 2, 2),
        depth_policy: DepthPolicy = PRESERVE,
        features: int = 64,
        kernels: Literal["acs", "soft", "mean", "slice"] = "acs",
    ) -> None:
        super().__init__(in_channels, depth, norm, strides=strides, depth_policy=depth_policy, features=features)
        for name, layer in list(self.named_modules()):
            if isinstance(layer, Conv3d) and max(layer.kernel_size) > 1:
                shape, side = (layer.in_channels, layer.out_channels), layer.kernel_size[0]
                if kernels == "slice":
                    flat = Conv3d(*shape, (side, side, 1), padding=(side // 2, side // 2, 0), bias=False)
                else:
                    flat = ACSConv3d(*shape, side, bias=False, kernels=kernels)
                self.set_submodule(name, flat)
        self.kernels = kernels
        self.set_depth(depth_policy)

    def conventions(self) -> dict[str, str]:
        """Return the number of layers, and how the channels see the planes."""
        return {**super().conventions(), "kernels": self.kernels}
