"""MONAI's Swin UNETR with named stages and an explicit order of patch merging."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from monai.networks.nets.swin_unetr import PatchMergingV2, SwinUNETR as MonaiSwinUNETR
from torch import Tensor

from lightning_atlas.networks.base import Backbone, Coarse, Features, Stage
from lightning_atlas.types import Image, Logits

Offsets = Sequence[tuple[int, int, int]]


class SwinUNETR(Backbone, MonaiSwinUNETR):
    """Shifted-window transformer as the encoder, residual convolutions as the decoder, as in MONAI, with its names.

    Source: Hatamizadeh et al., "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI
    Images", 2022, https://arxiv.org/abs/2201.01266.
    Differs: says in which order patches are merged. Weights trained with one order load into the other without any
    error and predict something else, so the order has to be that of the weights: those of SuPreM, the Universal
    Model and everything else that was trained with MONAI before 1.5 have the old one.

    Args:
        in_channels: Channels of the image.
        out_channels: Outputs; a run sets them from its classes.
        feature_size: Channels at the full resolution, a multiple of 12; the published network has 48.
        merging: Order in which the eight neighbours are joined when the grid halves: `monai_1.5` is MONAI's since 1.5,
            with each once; `monai_0.9` is that of 0.9 to 1.4, which joins two of them twice and two never.
        use_v2: Put a residual convolution before the transformer blocks of each level (Swin UNETR V2).
        use_checkpoint: Compute the transformer blocks again in the backward pass: less memory, more time.
        dropout_path_rate: Probability with which the last transformer block is skipped; it falls to 0 at the first.
    """

    size_multiple = 32
    skip_modules = ("encoder1", "encoder2", "encoder3", "encoder4")

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        feature_size: int = 48,
        merging: Literal["monai_0.9", "monai_1.5"] = "monai_1.5",
        use_v2: bool = False,
        use_checkpoint: bool = False,
        dropout_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            feature_size=feature_size,
            dropout_path_rate=dropout_path_rate,
            use_checkpoint=use_checkpoint,
            use_v2=use_v2,
            downsample=MERGINGS[merging],  # pyright: ignore[reportArgumentType]  (MONAI builds one per level from it)
        )
        self.merging = merging
        self.fine_features, self.coarse_features = feature_size, 16 * feature_size

    def stages(self) -> list[Stage]:
        """Return a stage per level of the transformer and of the decoder, then the head.

        A block on a skip belongs to the level whose output it reads; that of the image itself to the first.
        """
        before = [(f"swinViT.layers{level}c.0",) if self.swinViT.use_v2 else () for level in range(1, 5)]
        beside = [("encoder3",), ("encoder4",), (), ("encoder10",)]
        deeper = [(*before[n], f"swinViT.layers{n + 1}.0", *beside[n]) for n in range(4)]
        down = [("swinViT.patch_embed", "encoder1", "encoder2"), *deeper]
        encoder = [Stage(f"encoder.{level}", "encoder", modules) for level, modules in enumerate(down)]
        decoder = [Stage(f"decoder.{level}", "decoder", (f"decoder{5 - level}",)) for level in range(5)]
        return [*encoder, *decoder, Stage("head", "head", ("out",))]

    def conventions(self) -> dict[str, str]:
        """Return the order of patch merging."""
        return {"merging": self.merging}

    def check_size(self, image: Image) -> None:
        """Refuse an image that would not come back on its own grid, or that ends in a single voxel.

        Raises:
            ValueError: A side is not a multiple of 32, or all three are 32.
        """
        super().check_size(image)
        if max(image.shape[2:]) == 32:
            raise ValueError(
                "SwinUNETR halves the grid five times and normalises over what is left; of 32 x 32 x 32 voxels that is "
                "a single one: set one side of the patches and of the window to 64 or more"
            )

    def encoded(self, image: Image) -> Coarse:
        """Return the feature maps of the deepest block."""
        self.check_size(image)
        return self.encoder10(self.swinViT(image, self.normalize)[4])

    def features(self, image: Image) -> Features:
        """Return the feature maps of the deepest block and of the last level up."""
        self.check_size(image)
        hidden = self.swinViT(image, self.normalize)
        skips = [self.encoder1(image), self.encoder2(hidden[0]), self.encoder3(hidden[1]), self.encoder4(hidden[2])]
        coarse = self.encoder10(hidden[4])
        fine = self.decoder5(coarse, hidden[3])
        for level, skip in zip((4, 3, 2, 1), reversed(skips), strict=True):
            fine = self.get_submodule(f"decoder{level}")(fine, skip)
        return Features(coarse, fine)

    def forward(self, x_in: Image) -> Logits:  # `x_in`: MONAI's name, so that calls by keyword go on working
        """Return logits on the grid of the image."""
        return self.out(self.features(x_in).fine)


class PatchMerging(PatchMergingV2):
    """Halve the grid: join the channels of eight neighbours in an order of its own and reduce them to a quarter."""

    offsets: ClassVar[Offsets]
    """Along i, j and k, of each neighbour in turn."""

    def forward(self, x: Float[Tensor, "batch i j k features"]) -> Float[Tensor, "batch half_i half_j half_k merged"]:
        """Return maps on the halved grid; its sides are even, as `size_multiple` sees to."""
        joined = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in self.offsets], dim=-1)
        return self.reduction(self.norm(joined))


class MergingBefore15(PatchMerging):
    """The order of MONAI from 0.9 to 1.4, in which two neighbours stand twice and two are missing.

    Source: https://github.com/Project-MONAI/MONAI/pull/5106 and issue 7324.
    """

    offsets = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class MergingSince15(PatchMerging):
    """The order of MONAI since 1.5."""

    offsets = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))


MERGINGS: dict[str, type[PatchMerging]] = {"monai_0.9": MergingBefore15, "monai_1.5": MergingSince15}
