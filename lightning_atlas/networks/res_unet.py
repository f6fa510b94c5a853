"""Decoders over a residual encoder: the U-Net of the multi-organ tasks, and the head for nodules."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from lightning_atlas.networks.base import Coarse, Encoding, Maps, Pyramid, Stage, held_stages
from lightning_atlas.networks.conv_norm import ConvNorm, Norm, make_norm
from lightning_atlas.networks.depth import Conv3d
from lightning_atlas.types import Image, Logits


class PyramidDecoding(Encoding):
    """A decoder over the levels of a pyramid, which it holds as `backbone`; logits come back on the image's grid.

    Args:
        backbone: Whose levels are decoded.
    """

    def __init__(self, backbone: Pyramid) -> None:
        super().__init__()
        self.backbone = backbone
        self.coarse_features = backbone.coarse_features

    @property
    def size_multiple(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the pyramid's coarsest voxel is a multiple of; it changes with the policy along k."""
        return self.backbone.reductions()[-1]

    def conventions(self) -> dict[str, str]:
        """Return those of the backbone."""
        return self.backbone.conventions()

    def encoded(self, image: Image) -> Coarse:
        """Return the features of the coarsest level."""
        self.check_size(image)
        return self.backbone.encoded(image)

    def decoded(self, levels: list[Maps]) -> Maps:
        """Return logits on the grid of the finest level."""
        raise NotImplementedError

    def forward(self, image: Image) -> Logits:
        """Return logits on the grid of the image."""
        self.check_size(image)
        logits = self.decoded(self.backbone.levels(image))
        return logits if logits.shape[2:] == image.shape[2:] else resampled(logits, image)


class ResUNet(PyramidDecoding):
    """U-Net over the five levels of a residual encoder.

    As published, the encoder is an `R3D` of 18 layers whose first convolution keeps the grid (`strides: [1, 2, 1, 2, 2,
    2]`, `depth_policy: {strides: stride}`), and patches are 256 x 256 x 32. With a first stride of 2 the logits are
    brought from half of the grid to the image's, and each side divides by 32 instead of 16. The policy along k is the
    encoder's; the decoder pads with zeros.

    Source: Zhang et al., "Advancing 3D Medical Image Analysis with Variable Dimension Transform based Supervised 3D
    Pre-training", 2022, https://arxiv.org/abs/2201.01426; names as in https://github.com/urmagicsmine/CSPR.

    Args:
        backbone: Whose levels are decoded, such as `R3D`.
        out_channels: Outputs, background included; a run sets them from its classes.
        norm: `batch`, or `group` with 32 groups (fewer where the channels do not divide by 32).
        head_features: Channels of the two convolutions before the outputs.
        dropout: Probability with which a channel is dropped before the outputs.
    """

    def __init__(
        self,
        backbone: Pyramid,
        out_channels: int = 2,
        norm: Norm = "batch",
        head_features: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(backbone)
        widths = backbone.level_features
        self.neck = nn.ModuleDict(
            {"decoder": nn.ModuleList(UpLevel(below, here, norm) for here, below in pairwise(widths))}
        )
        inner = pairwise((widths[0], head_features, head_features))
        self.decode_head = nn.ModuleDict(
            {
                "convs": nn.Sequential(*(ConvNorm(before, after, 3, norm) for before, after in inner)),
                "conv_seg": nn.Conv3d(head_features, out_channels, kernel_size=1),
            }
        )
        self.dropout = nn.Dropout3d(dropout)

    def stages(self) -> list[Stage]:
        """Return the stages of the encoder, the levels of the decoder from the coarsest up, and the head."""
        levels = reversed(range(len(self.backbone.level_features) - 1))
        decoder = [Stage(f"decoder.{n}", "decoder", (f"neck.decoder.{level}",)) for n, level in enumerate(levels)]
        head = Stage("head", "head", ("decode_head.convs", "decode_head.conv_seg"))
        return [*held_stages(self.backbone), *decoder, head]

    def decoded(self, levels: list[Maps]) -> Maps:
        """Return logits on the grid of the finest level."""
        *skips, features = levels
        for number in reversed(range(len(skips))):
            features = self.get_submodule(f"neck.decoder.{number}")(features, skips[number])
        return self.decode_head["conv_seg"](self.dropout(self.decode_head["convs"](features)))


class UpLevel(nn.Module):
    """Bring features to the grid of the level above, join what the encoder had there, and convolve twice.

    Differs: the kernel of one voxel acts before the interpolation, with which it commutes, on an eighth of the voxels.

    Args:
        below: Channels of the level below.
        here: Channels of the encoder's level on this grid, and of the result.
        norm: As in `ResUNet`.
    """

    def __init__(self, below: int, here: int, norm: Norm) -> None:
        super().__init__()
        pairs = pairwise((2 * here, here, here))
        convolutions = nn.Sequential(*(ConvNorm(before, after, 3, norm) for before, after in pairs))
        self.conv_block = nn.ModuleDict({"convs": convolutions})
        # Published files count the interpolation, which has no weights, as layer 0.
        self.upsample = nn.ModuleDict({"interp_upsample": nn.ModuleDict({"1": ConvNorm(below, here, 1, norm)})})

    def forward(self, below: Maps, skip: Maps) -> Maps:
        """Return features on the grid of `skip`."""
        lateral = self.get_submodule("upsample.interp_upsample.1")
        assert isinstance(lateral, ConvNorm)
        raised = lateral.finished(resampled(lateral.conv(below), skip))
        return self.conv_block["convs"](torch.cat([skip, raised], dim=1))


class LidcFCN(PyramidDecoding):
    """Decoder of three levels of a residual encoder, for nodules in crops of 48 x 48 x 48 voxels.

    As published, the encoder is an `R3D` of 18 layers with `strides: [1, 1, 1, 2, 1, 2]` and `depth_policy: {strides:
    stride}`: the first convolution and layers 2 and 4 lie on the whole grid, half and a quarter of it.

    Source: Yang et al., "Reinventing 2D Convolutions for 3D Images", 2021, https://arxiv.org/abs/1911.10477; names as
    in https://github.com/urmagicsmine/CSPR.
    Differs: a convolution and a classifier that the published head holds and never uses are left out.

    Args:
        backbone: Whose first, third and fifth levels are decoded, such as `R3D`.
        out_channels: Outputs, background included; a run sets them from its classes.
        norm: `batch`, or `group` with 32 groups (fewer where the channels do not divide by 32).
        head_features: Channels in which the levels meet; a quarter of them before the outputs.

    Raises:
        ValueError: The backbone has not five levels.
    """

    def __init__(
        self, backbone: Pyramid, out_channels: int = 2, norm: Norm = "batch", head_features: int = 512
    ) -> None:
        super().__init__(backbone)
        if len(backbone.level_features) != 5:
            raise ValueError(
                f"LidcFCN reads the first, third and fifth of five levels, and {type(backbone).__name__} has "
                f"{len(backbone.level_features)}; set model.init_args.network.init_args.backbone to R3D"
            )
        first, _, second, _, last = backbone.level_features
        inner = head_features // 4
        final = nn.Sequential(
            Conv3d(head_features, inner, 3, padding=1, bias=False),
            make_norm(norm, inner),
            nn.ReLU(inplace=True),
            nn.Conv3d(inner, out_channels, kernel_size=1),
        )
        self.decode_head = nn.ModuleDict(
            {
                "conv1": ConvNorm(second + last, head_features, 1, norm),
                "conv2": ConvNorm(first + head_features, head_features, 1, norm),
                "seg_head": final,
            }
        )

    def stages(self) -> list[Stage]:
        """Return the stages of the encoder, the two joins of levels, and the head."""
        joins = [Stage(f"decoder.{n}", "decoder", (f"decode_head.conv{n + 1}",)) for n in range(2)]
        return [*held_stages(self.backbone), *joins, Stage("head", "head", ("decode_head.seg_head",))]

    def decoded(self, levels: list[Maps]) -> Maps:
        """Return logits on the grid of the finest level."""
        first, _, second, _, features = levels
        for name, skip in (("conv1", second), ("conv2", first)):
            features = self.decode_head[name](torch.cat([skip, F.interpolate(features, skip.shape[2:])], dim=1))
        return self.decode_head["seg_head"](features)


def resampled(features: Maps, wanted: Maps) -> Maps:
    """Return features on the grid of others, interpolated along the three axes."""
    return F.interpolate(features, size=wanted.shape[2:], mode="trilinear", align_corners=False)
