"""UniMiSS: a pyramid of transformers on shrinking grids, and the same upwards."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.networks.base import Backbone, Coarse, Features, Stage
from lightning_atlas.types import Image, Logits

Maps = Float[Tensor, "batch features i j k"]
Tokens = Float[Tensor, "batch tokens features"]
Grid = tuple[int, int, int]

STEM = 32
HEADS, REDUCTIONS = (1, 2, 4, 8), (6, 4, 2, 1)
"""Heads of the attention on each level of the encoder, and how far it coarsens what is looked at."""
PUBLISHED_GRIDS: tuple[Grid, ...] = ((24, 24, 8), (12, 12, 4), (6, 6, 2), (3, 3, 1))
"""Along i, j, k: on these the published positions were learned, from patches of 96 x 96 x 16 voxels."""


class UniMiSS(Backbone):
    """U-shaped pyramid of transformers with convolutions between its grids, with the published tensor names.

    Slices are thick: the first convolution halves the grid along i and j alone. Positions are stored on the published
    grid, behind the one of a class token that segmentation does without, and interpolated to the grid of the patch.

    Source: Xie et al., "UniMiSS: Universal Medical Self-Supervised Learning via Breaking Dimensionality Barrier", 2022,
    https://arxiv.org/abs/2112.09356, and https://github.com/YtongXie/UniMiSS-code.
    Differs: one output, without those of the coarser levels. The published segmentation network has positions for one
    size of patch, and its loader shifts those of three levels by a token when it interpolates them.

    Args:
        in_channels: Channels of the image.
        out_channels: Outputs; a run sets them from its classes.
        depths: Blocks on each level of the encoder; the small network has (2, 3, 4, 3), the tiny one (1, 1, 1, 1).
        decoder_depths: Blocks on each level upwards; (3, 4, 3) and (1, 1, 1).
        features: Channels on each level of the encoder.
    """

    size_multiple = (32, 32, 16)
    fine_features = STEM

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        depths: Sequence[int] = (2, 3, 4, 3),
        decoder_depths: Sequence[int] = (3, 4, 3),
        features: Sequence[int] = (48, 128, 256, 512),
    ) -> None:
        super().__init__()
        if (len(depths), len(decoder_depths), len(features)) != (4, 3, 4):
            raise ValueError(
                "UniMiSS has 4 levels down and 3 up; found "
                f"{len(features)} features, {len(depths)} depths and {len(decoder_depths)} decoder_depths"
            )
        self.coarse_features = features[-1]
        self.transformer = nn.Module()
        self.transformer.add_module("patch_embed0", ConvolutionBlock(in_channels, STEM, 7, (2, 2, 1)))
        levels = enumerate(
            zip([STEM, *features], features, depths, HEADS, REDUCTIONS, PUBLISHED_GRIDS, strict=False), 1
        )
        for level, (above, here, depth, heads, reduction, grid) in levels:
            embed = nn.Sequential(OrderedDict(proj=ConvolutionBlock(above, here, 3, (2, 2, 2))))
            blocks = (Block(here, heads, reduction, bias=True, eps=1e-6) for _ in range(depth))
            self.transformer.add_module(f"patch_embed{level}", embed)
            self.transformer.register_parameter(f"pos_embed{level}", _positions(grid, here))
            self.transformer.add_module(f"block{level}", nn.ModuleList(blocks))
        for level, depth in enumerate(decoder_depths):
            below, here, at = features[3 - level], features[2 - level], 2 - level
            blocks = (Block(here, HEADS[at + 1], REDUCTIONS[at], bias=False, eps=1e-5) for _ in range(depth))
            self.add_module(f"DecEmbed{level}", nn.Sequential(OrderedDict(proj=nn.ConvTranspose3d(below, here, 2, 2))))
            self.register_parameter(f"DecPosEmbed{level}", _positions(PUBLISHED_GRIDS[at], here))
            self.add_module(f"Decblock{level}", nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(features[0])
        self.transposeconv_stage3 = nn.ConvTranspose3d(features[0], STEM, 2, 2)
        self.stage3_de = ConvolutionBlock(STEM, STEM, 3, (1, 1, 1))
        self.cls_conv = nn.Conv3d(STEM, out_channels, 1)

    def stages(self) -> list[Stage]:
        """Return a stage for the stem and for each level, down and up, then the head."""
        down = [
            tuple(f"transformer.{each}{level}" for each in ("patch_embed", "pos_embed", "block"))
            for level in range(1, 5)
        ]
        up = [tuple(f"{each}{level}" for each in ("DecEmbed", "DecPosEmbed", "Decblock")) for level in range(3)]
        up = [*up[:2], (*up[2], "norm"), ("transposeconv_stage3", "stage3_de")]
        encoder = [("transformer.patch_embed0",), *down]
        return [
            *(Stage(f"encoder.{level}", "encoder", names) for level, names in enumerate(encoder)),
            *(Stage(f"decoder.{level}", "decoder", names) for level, names in enumerate(up)),
            Stage("head", "head", ("cls_conv",)),
        ]

    def encoded(self, image: Image) -> Coarse:
        """Return the feature maps of the deepest level."""
        return self._levels(image)[-1]

    def features(self, image: Image) -> Features:
        """Return the feature maps of the deepest level, and those that the head reads, on the grid of the image."""
        stem, *skips, coarse = self._levels(image)
        maps = coarse
        for level, skip in enumerate(reversed(skips)):
            maps = self.get_submodule(f"DecEmbed{level}")(maps) + skip
            last = self.norm if level == len(skips) - 1 else None
            maps = _attended(
                maps, self.get_parameter(f"DecPosEmbed{level}"), self.get_submodule(f"Decblock{level}"), last
            )
        maps = self.stage3_de(self.transposeconv_stage3(maps) + stem)
        return Features(coarse, F.interpolate(maps, scale_factor=(2, 2, 1), mode="trilinear", align_corners=False))

    def forward(self, image: Image) -> Logits:
        """Return logits on the grid of the image."""
        return self.cls_conv(self.features(image).fine)

    def _levels(self, image: Image) -> list[Tensor]:
        self.check_size(image)
        part = self.transformer
        found = [part.get_submodule("patch_embed0")(image)]
        for level in range(1, 5):
            maps = part.get_submodule(f"patch_embed{level}")(found[-1])
            positions, blocks = part.get_parameter(f"pos_embed{level}"), part.get_submodule(f"block{level}")
            found.append(_attended(maps, positions, blocks))
        return found


def _attended(maps: Maps, positions: nn.Parameter, blocks: nn.Module, last: nn.Module | None = None) -> Maps:
    grid = (maps.shape[2], maps.shape[3], maps.shape[4])
    tokens = (maps + positions_on(positions, grid)).flatten(2).transpose(1, 2)
    for block in blocks.children():
        tokens = block(tokens, grid)
    tokens = tokens if last is None else last(tokens)
    return tokens.transpose(1, 2).unflatten(2, grid)


def positions_on(
    positions: Float[Tensor, "1 tokens_and_one features"], grid: Grid
) -> Float[Tensor, "1 features i j k"]:
    """Return published positions on a grid: without the first token's, and interpolated where theirs is another.

    Args:
        positions: As published: a row for the class token, then the places of the grid, k slowest and j fastest.
        grid: Places along i, j, k.
    """
    own = next(each for each in PUBLISHED_GRIDS if each[0] * each[1] * each[2] == positions.shape[1] - 1)
    maps = positions[:, 1:].unflatten(1, (own[2], own[0], own[1])).permute(0, 4, 2, 3, 1)
    return maps if own == grid else F.interpolate(maps, size=grid, mode="trilinear", align_corners=False)


class ConvolutionBlock(nn.Module):
    """A convolution, a norm of each case's channels, and a rectifier.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        size: Of the kernel along each axis.
        stride: Along i, j, k.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: Grid) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self.norm = nn.InstanceNorm3d(outputs, affine=True)
        self.nonlin = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, maps: Maps) -> Float[Tensor, "batch outputs i2 j2 k2"]:
        """Return features on the grid that the stride leaves."""
        return self.nonlin(self.norm(self.conv(maps)))


class Attention(nn.Module):
    """Every place looks at all places of a grid that is coarser by `reduction`.

    Args:
        features: Of a token.
        heads: Parts of the features that look for themselves.
        reduction: Side of the blocks of places that are taken together; 1 leaves them as they are.
        bias: Of the layers before the attention.
    """

    def __init__(self, features: int, heads: int, reduction: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(features, features, bias=bias)
        self.kv = nn.Linear(features, 2 * features, bias=bias)
        self.proj = nn.Linear(features, features)
        self.sr = nn.Conv3d(features, features, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(features) if reduction > 1 else None

    def forward(self, tokens: Tokens, grid: Grid) -> Tokens:
        """Return what each place found."""
        seen = tokens
        if self.sr is not None and self.norm is not None:
            seen = self.norm(self.sr(tokens.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2))
        apart = partial(torch.unflatten, dim=2, sizes=(-1, tokens.shape[2] // self.heads))
        query, key, value = (apart(each).transpose(1, 2) for each in (self.q(tokens), *self.kv(seen).chunk(2, dim=2)))
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two layers for each place, each behind a norm and beside a shortcut.

    Args:
        features: Of a token; inside the two layers there are four times as many.
        heads: As in `Attention`.
        reduction: As in `Attention`.
        bias: As in `Attention`.
        eps: Added to the variance in the norms.
    """

    def __init__(self, features: int, heads: int, reduction: int, bias: bool, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features, eps=eps)
        self.attn = Attention(features, heads, reduction, bias)
        self.norm2 = nn.LayerNorm(features, eps=eps)
        layers = {"fc1": nn.Linear(features, 4 * features), "fc2": nn.Linear(4 * features, features)}
        self.mlp = nn.ModuleDict(layers)

    def forward(self, tokens: Tokens, grid: Grid) -> Tokens:
        """Return the tokens of the next block."""
        tokens = tokens + self.attn(self.norm1(tokens), grid)
        return tokens + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens))))


def _positions(grid: Grid, features: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + grid[0] * grid[1] * grid[2], features), std=0.02))
