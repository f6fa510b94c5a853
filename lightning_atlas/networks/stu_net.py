"""STU-Net: a U-Net of residual blocks in four sizes, under the published state-dict keys."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.networks.base import Coarse, Encoding, Stage
from lightning_atlas.networks.supervised import DeeplySupervised
from lightning_atlas.types import Image, Logits

Sides = tuple[int, int, int]
Maps = Float[Tensor, "batch features i j k"]
Level = Float[Tensor, "batch level_features level_i level_j level_k"]
Outputs = list[Float[Tensor, "batch outputs ..."]]


class STUNet(DeeplySupervised, Encoding):
    """U-Net of residual blocks with instance norm, which grows in depth and width together.

    | size | features | depths |
    |---|---|---|
    | S, 14.6 M parameters | 16, 32, 64, 128, 256, 256 | 1, 1, 1, 1, 1, 1 |
    | B, 58.3 M (the default) | 32, 64, 128, 256, 512, 512 | 1, 1, 1, 1, 1, 1 |
    | L, 440.3 M | 64, 128, 256, 512, 1024, 1024 | 2, 2, 2, 2, 2, 2 |
    | H, 1457.3 M | 96, 192, 384, 768, 1536, 1536 | 3, 3, 3, 3, 3, 3 |

    Source: Huang et al., "STU-Net: Scalable and Transferable Medical Image Segmentation Models Empowered by Large-Scale
    Supervised Pre-training", 2023, https://arxiv.org/abs/2304.06716; keys as in https://github.com/uni-medical/STU-Net.
    Differs: axes are i, j, k, so published kernels are transposed at intake (the paper's code has nnU-Net's order);
    without deep supervision the outputs of coarser levels are not there.

    Args:
        in_channels: Channels of the image.
        out_channels: Outputs, background included; a run sets them from its classes.
        features: Channels of each level, from the full resolution down.
        depths: Residual blocks of each level, on the way down and on the way up.
        strides: By how much each level reduces the grid: one number, or three along i, j, k; the first is 1.
        deep_supervision: In training, return a list of outputs of every level, the finest first.

    Raises:
        ValueError: The lists do not describe the same number of levels.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        features: Sequence[int] = (32, 64, 128, 256, 512, 512),
        depths: Sequence[int] = (1, 1, 1, 1, 1, 1),
        strides: Sequence[int | Sequence[int]] = (1, 2, 2, 2, 2, 2),
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if len(features) < 2 or not len(features) == len(depths) == len(strides):
            raise ValueError(
                f"STUNet has as many depths and strides as features, at least 2; found {len(features)} features, "
                f"{len(depths)} depths and {len(strides)} strides"
            )
        self.deep_supervision = deep_supervision
        steps = [_sides(each) for each in strides]
        i, j, k = (math.prod(along) for along in zip(*steps, strict=True))
        self.size_multiple = i if i == j == k else (i, j, k)
        self.coarse_features = features[-1]
        down = zip([in_channels, *features[:-1]], features, steps, depths, strict=True)
        self.conv_blocks_context = nn.ModuleList(_blocks(*level) for level in down)
        self.upsample_layers, self.conv_blocks_localization = nn.ModuleList(), nn.ModuleList()
        self.seg_outputs = nn.ModuleDict()
        last = len(features) - 2
        for number, level in enumerate(range(last, -1, -1)):
            here = features[level]
            self.upsample_layers.append(Enlarge(features[level + 1], here, steps[level + 1]))
            self.conv_blocks_localization.append(_blocks(2 * here, here, (1, 1, 1), depths[level]))
            if deep_supervision or number == last:
                self.seg_outputs[str(number)] = nn.Conv3d(here, out_channels, kernel_size=1)
        self.apply(_initialise)

    def stages(self) -> list[Stage]:
        """Return a stage per level of the encoder and of the decoder, then the head: the outputs of all levels."""
        down, up = range(len(self.conv_blocks_context)), range(len(self.upsample_layers))
        encoder = [Stage(f"encoder.{level}", "encoder", (f"conv_blocks_context.{level}",)) for level in down]
        levels = [(f"upsample_layers.{level}", f"conv_blocks_localization.{level}") for level in up]
        decoder = [Stage(f"decoder.{level}", "decoder", modules) for level, modules in enumerate(levels)]
        return [*encoder, *decoder, Stage("head", "head", tuple(f"seg_outputs.{name}" for name in self.seg_outputs))]

    def coarser_outputs(self) -> list[str]:
        """Return the layers that give the outputs of coarser levels."""
        return [f"seg_outputs.{name}" for name in list(self.seg_outputs)[:-1]]

    def encoded(self, image: Image) -> Coarse:
        """Return the features of the deepest level."""
        return self._levels(image)[-1]

    def _levels(self, image: Image) -> list[Tensor]:
        self.check_size(image)
        found = [image]
        for level in self.conv_blocks_context:
            found.append(level(found[-1]))
        return found

    def forward(self, image: Image) -> Logits | Outputs:
        """Return logits on the grid of the image; in training with deep supervision a list, the finest first."""
        skips = self._levels(image)
        found = [skips[-1]]
        for enlarge, blocks, skip in zip(
            self.upsample_layers, self.conv_blocks_localization, skips[-2:0:-1], strict=True
        ):
            found.append(blocks(torch.cat([enlarge(found[-1]), skip], dim=1)))
        outputs = [layer(found[1 + int(level)]) for level, layer in self.seg_outputs.items()][::-1]
        return outputs if self.training and self.deep_supervision else outputs[0]


class ResidualBlock(nn.Module):
    """Two convolutions and a way around them, which is linear in the first block of a level and else nothing at all."""

    def __init__(self, inputs: int, outputs: int, stride: Sides, projected: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, kernel_size=3, stride=stride, padding=1)
        self.norm1 = nn.InstanceNorm3d(outputs, affine=True)
        self.act1 = nn.LeakyReLU(inplace=True)
        self.conv2 = nn.Conv3d(outputs, outputs, kernel_size=3, padding=1)
        self.norm2 = nn.InstanceNorm3d(outputs, affine=True)
        self.act2 = nn.LeakyReLU(inplace=True)
        self.conv3 = nn.Conv3d(inputs, outputs, kernel_size=1, stride=stride) if projected else nn.Identity()

    def forward(self, features: Maps) -> Level:
        """Return features on the reduced grid."""
        inner = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(features)))))
        return self.act2(inner + self.conv3(features))


class Enlarge(nn.Module):
    """Repeat each voxel and mix the channels.

    Args:
        inputs: Channels.
        outputs: Channels.
        factor: How often along i, j and k.
    """

    def __init__(self, inputs: int, outputs: int, factor: Sides) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel_size=1)
        self.factor = tuple(float(each) for each in factor)

    def forward(self, features: Maps) -> Level:
        """Return features on the finer grid."""
        # Mixed before they are repeated: the same numbers, from an eighth of the products.
        return F.interpolate(self.conv(features), scale_factor=self.factor, mode="nearest")


def _blocks(inputs: int, outputs: int, stride: Sides, depth: int) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, stride, projected=True)
    others = (ResidualBlock(outputs, outputs, (1, 1, 1), projected=False) for _ in range(depth - 1))
    return nn.Sequential(first, *others)


def _sides(size: int | Sequence[int]) -> Sides:
    i, j, k = (size,) * 3 if isinstance(size, int) else size
    return i, j, k


def _initialise(module: nn.Module) -> None:
    """He et al. 2015 for the slope of the rectifier."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
