"""A plain 3D U-Net."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

from lightning_atlas.networks.base import Coarse, Maps, Pyramid, Stage
from lightning_atlas.types import Image, Logits

Features = Float[Tensor, "batch features i j k"]


class UNet(Pyramid):
    """Plain 3D U-Net: two 3x3x3 convolutions per level, instance norm, strided convolutions down, transposed ones up.

    Source: Cicek et al., "3D U-Net: Learning Dense Volumetric Segmentation from Sparse Annotation", 2016,
    https://arxiv.org/abs/1606.06650.
    Differs: strided convolutions for max-pooling, instance norm for batch norm and leaky rectifiers, as in nnU-Net.

    Args:
        in_channels: Channels of the image.
        out_channels: Outputs, background included; a run sets them from its classes.
        features: Channels of each level, from the full resolution down; every level after the first halves the grid.
        dropout: Probability with which a value is dropped after each normalisation.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        features: Sequence[int] = (16, 32, 64, 96),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.size_multiple = 2 ** (len(features) - 1)
        self.coarse_features, self.level_features = features[-1], tuple(features)
        inputs = [in_channels, *features[:-1]]
        self.encoder = nn.ModuleList(
            _convolutions(above, here, stride=1 if level == 0 else 2, dropout=dropout)
            for level, (above, here) in enumerate(zip(inputs, features, strict=True))
        )
        upwards = reversed(features)
        self.decoder = nn.ModuleList(UpLevel(below, here, dropout) for below, here in pairwise(upwards))
        self.head = nn.Conv3d(features[0], out_channels, kernel_size=1)

    def stages(self) -> list[Stage]:
        """Return a stage per level of the encoder and of the decoder, then the head."""
        encoder = [Stage(f"encoder.{level}", "encoder", (f"encoder.{level}",)) for level in range(len(self.encoder))]
        decoder = [Stage(f"decoder.{level}", "decoder", (f"decoder.{level}",)) for level in range(len(self.decoder))]
        return [*encoder, *decoder, Stage("head", "head", ("head",))]

    def levels(self, image: Image) -> list[Maps]:
        """Return the features of each level of the encoder."""
        self.check_size(image)
        found = [image]
        for level in self.encoder:
            found.append(level(found[-1]))
        return found[1:]

    def reductions(self) -> list[tuple[int, int, int]]:
        """Return 1, 2, 4 and so on."""
        return [(2**level,) * 3 for level in range(len(self.encoder))]

    def forward(self, image: Image) -> Logits:
        """Return logits on the grid of the image."""
        skips = self.levels(image)
        features = skips[-1]
        for level, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            features = level(features, skip)
        return self.head(features)


class UpLevel(nn.Module):
    """Double the grid, join what the encoder had there, and convolve twice.

    Args:
        below: Channels of the level below.
        here: Channels of the encoder's level on this grid, and of the result.
        dropout: As in `UNet`.
    """

    def __init__(self, below: int, here: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(below, here, kernel_size=2, stride=2)
        self.convolutions = _convolutions(2 * here, here, stride=1, dropout=dropout)

    def forward(self, below: Coarse, skip: Features) -> Features:
        """Return features on the grid of `skip`."""
        return self.convolutions(torch.cat([skip, self.up(below)], dim=1))


def _convolutions(inputs: int, outputs: int, stride: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        *(
            Convolution(
                spatial_dims=3,
                in_channels=before,
                out_channels=outputs,
                strides=step,
                norm=("instance", {"affine": True}),
                act="leakyrelu",
                dropout=dropout or None,
                bias=False,  # the norm that follows would take any constant away
            )
            for before, step in ((inputs, stride), (outputs, 1))
        )
    )
