"""A convolution, its norm and a rectifier, under the names that mmcv's layers have in published files."""

from math import gcd
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.networks.base import Maps
from lightning_atlas.networks.depth import Conv3d

Norm = Literal["batch", "group"]
AnyNorm = nn.BatchNorm3d | nn.GroupNorm


class ConvNorm(nn.Module):
    """Convolution, norm and rectifier, as `conv` and `bn` or `gn`.

    Args:
        inputs: Channels of its features.
        outputs: Channels of the result.
        kernel: Side of the kernel.
        norm: `batch`, or `group` with 32 groups (fewer where the channels do not divide by 32).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: Norm) -> None:
        super().__init__()
        self.norm: Norm = norm
        self.conv = Conv3d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        add_norm(self, norm, outputs)

    def forward(self, features: Float[Tensor, "batch inputs i j k"]) -> Maps:
        """Return the features."""
        return self.finished(self.conv(features))

    def finished(self, convolved: Maps) -> Maps:
        """Return what norm and rectifier make of the convolution's result."""
        return F.relu(norm_of(self, self.norm)(convolved), inplace=True)


def norm_name(norm: Norm, number: str = "") -> str:
    """Return the published name of a norm."""
    return f"{'bn' if norm == 'batch' else 'gn'}{number}"


def make_norm(norm: Norm, channels: int) -> AnyNorm:
    """Return a norm; group norm has 32 groups, or as many as divide both 32 and the channels."""
    return nn.BatchNorm3d(channels) if norm == "batch" else nn.GroupNorm(gcd(32, channels), channels)


def add_norm(module: nn.Module, norm: Norm, channels: int, number: str = "") -> None:
    """Give a module a norm under its published name."""
    module.add_module(norm_name(norm, number), make_norm(norm, channels))


def norm_of(module: nn.Module, norm: Norm, number: str = "") -> AnyNorm:
    """Return the norm that a module holds under its published name."""
    return getattr(module, norm_name(norm, number))
