"""MedNeXt v1: a U-Net of ConvNeXt blocks, under the published state-dict keys."""

from collections.abc import Sequence

from jaxtyping import Float
from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtDownBlock, MedNeXtOutBlock, MedNeXtUpBlock
from torch import Tensor, nn

from lightning_atlas.networks.base import Coarse, Encoding, Stage
from lightning_atlas.networks.supervised import DeeplySupervised
from lightning_atlas.types import Image, Logits

Outputs = list[Float[Tensor, "batch outputs ..."]]
LEVELS = 4
"""How often the grid is halved; the published names count these levels."""


class MedNeXt(DeeplySupervised, Encoding):
    """Five levels of ConvNeXt blocks: a depthwise convolution, then two linear layers across channels, and a skip.

    | size | expansions | depths |
    |---|---|---|
    | S, 5.6 M parameters with kernels of 3 (5.9 M with 5) | 2, 2, 2, 2, 2, 2, 2, 2, 2 | 2, 2, 2, 2, 2, 2, 2, 2, 2 |
    | B, 10.5 M (11.0 M) | 2, 3, 4, 4, 4, 4, 4, 3, 2 | 2, 2, 2, 2, 2, 2, 2, 2, 2 |
    | M, 17.6 M (18.3 M) | 2, 3, 4, 4, 4, 4, 4, 3, 2 | 3, 4, 4, 4, 4, 4, 4, 4, 3 |
    | L, 61.8 M (63.0 M) | 3, 4, 8, 8, 8, 8, 8, 4, 3 | 3, 4, 8, 8, 8, 8, 8, 4, 3 |

    Source: Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation", 2023,
    https://arxiv.org/abs/2303.09975; keys as in https://github.com/MIC-DKFZ/MedNeXt (v1).
    Differs: axes are i, j, k, so published kernels are transposed at intake (the paper's code has nnU-Net's order).
    `dummy_tensor` is not there: a number that the published code needs for checkpointing and no result depends on.
    MONAI's class of this name expands otherwise between two levels than the published B, M and L; its blocks are used.

    Args:
        in_channels: Channels of the image.
        out_channels: Outputs, background included; a run sets them from its classes.
        features: Channels at the full resolution; they double per level.
        kernel_size: Of the depthwise convolutions: 3 or 5 in the paper.
        expansions: Factor by which the blocks of each level widen: four levels down, the deepest, four up.
        depths: Blocks of each level, in the same order.
        deep_supervision: In training, return a list of outputs of every level, the finest first.

    Raises:
        ValueError: There are not nine expansions and depths.
    """

    size_multiple = 2**LEVELS

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        features: int = 32,
        kernel_size: int = 3,
        expansions: Sequence[int] = (2, 2, 2, 2, 2, 2, 2, 2, 2),
        depths: Sequence[int] = (2, 2, 2, 2, 2, 2, 2, 2, 2),
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if not len(expansions) == len(depths) == 2 * LEVELS + 1:
            raise ValueError(
                f"MedNeXt has {2 * LEVELS + 1} levels, four down, the deepest and four up; found {len(expansions)} "
                f"expansions and {len(depths)} depths"
            )
        self.deep_supervision = deep_supervision
        widths = [features * 2**level for level in range(LEVELS + 1)]
        self.coarse_features = widths[-1]
        self.stem = nn.Conv3d(in_channels, features, kernel_size=1)
        for level in range(LEVELS):
            self.add_module(f"enc_block_{level}", _blocks(widths[level], expansions[level], kernel_size, depths[level]))
            # The way to the next level widens as the next level does.
            sizes = (widths[level], widths[level + 1], expansions[level + 1], kernel_size)
            self.add_module(f"down_{level}", MedNeXtDownBlock(*sizes, use_residual_connection=True))
        self.bottleneck = _blocks(widths[LEVELS], expansions[LEVELS], kernel_size, depths[LEVELS])
        for level in reversed(range(LEVELS)):
            expansion, depth = expansions[-1 - level], depths[-1 - level]
            sizes = (widths[level + 1], widths[level], expansion, kernel_size)
            self.add_module(f"up_{level}", MedNeXtUpBlock(*sizes, use_residual_connection=True))
            self.add_module(f"dec_block_{level}", _blocks(widths[level], expansion, kernel_size, depth))
        self.out_0 = MedNeXtOutBlock(features, out_channels, dim="3d")
        for level in range(1, LEVELS + 1) if deep_supervision else ():
            self.add_module(f"out_{level}", MedNeXtOutBlock(widths[level], out_channels, dim="3d"))

    def stages(self) -> list[Stage]:
        """Return a stage per level of the encoder and of the decoder, then the head: the outputs of all levels."""
        down = [("stem", "enc_block_0"), *((f"down_{level - 1}", f"enc_block_{level}") for level in range(1, LEVELS))]
        down.append((f"down_{LEVELS - 1}", "bottleneck"))
        up = [(f"up_{level}", f"dec_block_{level}") for level in reversed(range(LEVELS))]
        encoder = [Stage(f"encoder.{level}", "encoder", modules) for level, modules in enumerate(down)]
        decoder = [Stage(f"decoder.{level}", "decoder", modules) for level, modules in enumerate(up)]
        outputs = (*(name.removesuffix(".conv_out") for name in self.coarser_outputs()), "out_0")
        return [*encoder, *decoder, Stage("head", "head", outputs)]

    def coarser_outputs(self) -> list[str]:
        """Return the layers that give the outputs of coarser levels, the coarsest first."""
        levels = range(LEVELS, 0, -1) if self.deep_supervision else ()
        return [f"out_{level}.conv_out" for level in levels]

    def encoded(self, image: Image) -> Coarse:
        """Return the features of the deepest level."""
        return self._levels(image)[-1]

    def _levels(self, image: Image) -> list[Tensor]:
        self.check_size(image)
        found: list[Tensor] = []
        features = self.stem(image)
        for level in range(LEVELS):
            found.append(self.get_submodule(f"enc_block_{level}")(features))
            features = self.get_submodule(f"down_{level}")(found[level])
        return [*found, self.bottleneck(features)]

    def forward(self, image: Image) -> Logits | Outputs:
        """Return logits on the grid of the image; in training with deep supervision a list, the finest first."""
        part = self.get_submodule
        *skips, deepest = self._levels(image)
        found = [deepest]
        for level in reversed(range(LEVELS)):
            found.insert(0, part(f"dec_block_{level}")(skips[level] + part(f"up_{level}")(found[0])))
        if not self.deep_supervision:
            return self.out_0(found[0])
        outputs = [part(f"out_{level}")(features) for level, features in reversed([*enumerate(found)])][::-1]
        return outputs if self.training else outputs[0]


def _blocks(channels: int, expansion: int, kernel_size: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(MedNeXtBlock(channels, channels, expansion, kernel_size) for _ in range(depth)))
