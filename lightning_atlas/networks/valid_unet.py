"""The 3D U-Net without padding: it says nothing of the voxels at the faces of an image."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.networks.base import Coarse, Encoding, Stage
from lightning_atlas.types import Image

Maps = Float[Tensor, "batch features i j k"]
Inner = Float[Tensor, "batch outputs inner_i inner_j inner_k"]


class ValidUNet(Encoding):
    """3D U-Net of convolutions without padding and without normalisation: 132 voxels a side in, 44 out.

    Two 3x3x3 convolutions and rectifiers per level, max-pooling down, the nearest voxel up; what the encoder had is
    cropped and joined behind what comes from below. Each convolution is a stage. Glorot's uniform initialisation.

    Source: Humpire-Mamani et al., "Transfer learning from a sparsely annotated dataset of 3D medical images", 2023,
    https://arxiv.org/abs/2311.05032, as published in https://github.com/DIAGNijmegen/MedicalTransferLearning3D-UNet;
    after Cicek et al., "3D U-Net: Learning Dense Volumetric Segmentation from Sparse Annotation", 2016,
    https://arxiv.org/abs/1606.06650.
    Differs: returns logits, the published one probabilities; its L2 penalty is the callback `KernelPenalty`.

    Args:
        in_channels: Channels of the image.
        out_channels: Outputs, background included; a run sets them from its classes.
        features: Channels of the first convolution of each level, from the full resolution down; the second has twice
            as many. Every level after the first halves the grid.
    """

    def __init__(
        self, in_channels: int = 1, out_channels: int = 2, features: Sequence[int] = (32, 64, 128, 256)
    ) -> None:
        super().__init__()
        if not features or min(features) < 1:
            raise ValueError(f"features of ValidUNet are channels of each level, 1 or more; found {list(features)}")
        # Two convolutions take two voxels at each face of their grid: on each level down, and on each level up.
        scale = 2 ** (len(features) - 1)
        lost_down, lost_up = 2 * (2 * scale - 1), 2 * (scale - 1)
        self.context = lost_down + lost_up
        self.size_multiple = scale
        fewest = 2 * lost_up // scale + 1  # voxels a side that the coarsest grid must have, so that one is left
        self.size_offset = scale * fewest + 2 * lost_down
        wide = [2 * each for each in features]
        self.encoder = nn.ModuleList(
            _convolutions(above, here, 2 * here)
            for above, here in zip([in_channels, *wide[:-1]], features, strict=True)
        )
        self.decoder = nn.ModuleList(
            _convolutions(below + here, here, here) for below, here in zip(wide[:0:-1], wide[-2::-1], strict=True)
        )
        self.head = nn.Conv3d(wide[0], out_channels, kernel_size=1)
        self.coarse_features = wide[-1]
        self.apply(_initialise)

    def stages(self) -> list[Stage]:
        """Return a stage for each convolution, from input to output."""
        down = [f"encoder.{level}.{number}" for level in range(len(self.encoder)) for number in range(2)]
        up = [f"decoder.{level}.{number}" for level in range(len(self.decoder)) for number in range(2)]
        return [
            *(Stage(name, "encoder", (name,)) for name in down),
            *(Stage(name, "decoder", (name,)) for name in up),
            Stage("head", "head", ("head",)),
        ]

    def resize(self, outputs: int) -> None:
        """Give the head that many outputs, freshly initialised, unless it has them already."""
        before = self.head
        super().resize(outputs)
        if self.head is not before:
            _initialise(self.head)

    def encoded(self, image: Image) -> Coarse:
        """Return the maps of the deepest level."""
        return self._levels(image)[-1]

    def forward(self, image: Image) -> Inner:
        """Return logits on the grid of the image less `context` voxels at each face."""
        skips = self._levels(image)
        maps = skips[-1]
        for level, skip in zip(self.decoder, skips[-2::-1], strict=True):
            up = F.interpolate(maps, scale_factor=2, mode="nearest")
            maps = _convolved(level, torch.cat([up, centre(skip, up)], dim=1))
        return self.head(maps)

    def _levels(self, image: Image) -> list[Tensor]:
        self.check_size(image)
        found: list[Tensor] = []
        for level in self.encoder:
            found.append(_convolved(level, F.max_pool3d(found[-1], 2) if found else image))
        return found


def centre(maps: Maps, like: Float[Tensor, "batch _ _ _ _"]) -> Tensor:
    """Return the middle of some maps, of the size that others have."""
    sides = zip(maps.shape[2:], like.shape[2:], strict=True)
    i, j, k = (slice((whole - part) // 2, (whole + part) // 2) for whole, part in sides)
    return maps[:, :, i, j, k]


def _convolutions(inputs: int, first: int, second: int) -> nn.ModuleList:
    return nn.ModuleList([nn.Conv3d(inputs, first, 3), nn.Conv3d(first, second, 3)])


def _convolved(level: nn.Module, maps: Tensor) -> Tensor:
    for convolution in cast(nn.ModuleList, level):
        maps = F.relu(convolution(maps))
    return maps


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
