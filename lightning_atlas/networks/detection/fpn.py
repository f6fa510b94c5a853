"""A feature pyramid over the levels of an encoder."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Level = Float[Tensor, "batch _features ..."]


class FeaturePyramid(nn.Module):
    """Brings the levels of an encoder to one width and adds to each what the coarser ones know.

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", 2016, https://arxiv.org/abs/1612.03144; names
    of the tensors as in mmdetection.

    Args:
        channels: Of each level, from the finest grid down.
        features: Channels of each level of the result.
        axes: 2 or 3.
        further: Levels that are added below the coarsest by taking every second voxel.
    """

    def __init__(self, channels: Sequence[int], features: int, axes: Literal[2, 3], further: int = 0) -> None:
        super().__init__()
        convolution = nn.Conv2d if axes == 2 else nn.Conv3d
        self.lateral_convs = nn.ModuleList(_named(convolution(width, features, 1)) for width in channels)
        self.fpn_convs = nn.ModuleList(_named(convolution(features, features, 3, padding=1)) for _ in channels)
        self.further = further

    def forward(self, levels: list[Level]) -> list[Level]:
        """Return as many levels, on the same grids, and the further ones.

        Args:
            levels: From the finest grid down.
        """
        found = [lateral(level) for lateral, level in zip(self.lateral_convs, levels, strict=True)]
        for finer in range(len(found) - 2, -1, -1):
            found[finer] = found[finer] + F.interpolate(found[finer + 1], size=found[finer].shape[2:], mode="nearest")
        found = [smooth(level) for smooth, level in zip(self.fpn_convs, found, strict=True)]
        for _ in range(self.further):
            axes = found[-1].ndim - 2
            found.append(found[-1][(..., *(slice(None, None, 2),) * axes)])
        return found


def _named(convolution: nn.Conv2d | nn.Conv3d) -> nn.Sequential:
    nn.init.xavier_uniform_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return nn.Sequential(OrderedDict(conv=convolution))
