"""MONAI's SegResNet with named stages."""

from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet

from lightning_atlas.networks.base import Maps, Pyramid, Stage
from lightning_atlas.types import Image, Logits


class SegResNet(Pyramid, MonaiSegResNet):
    """Residual encoder and a light decoder, as in MONAI, with the same state-dict keys.

    Source: Myronenko, "3D MRI brain tumor segmentation using autoencoder regularization", 2018,
    https://arxiv.org/abs/1810.11654.
    Differs: without the variational branch, as MONAI's class of the same name.

    Args:
        in_channels: Channels of the image.
        out_channels: Outputs, background included; a run sets them from its classes.
        init_filters: Channels at the full resolution, a multiple of 8 (the groups of its norm); they double per level.
        blocks_down: Residual blocks of each level of the encoder.
        blocks_up: Residual blocks of each level of the decoder: one level fewer.
        dropout: Probability with which a value is dropped after the first convolution.

    Raises:
        ValueError: The decoder would not return to the full resolution.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        init_filters: int = 16,
        blocks_down: tuple[int, ...] = (1, 2, 2, 4),
        blocks_up: tuple[int, ...] = (1, 1, 1),
        dropout: float = 0.0,
    ) -> None:
        if len(blocks_up) != len(blocks_down) - 1:
            raise ValueError(
                f"SegResNet returns to the full resolution with {len(blocks_down) - 1} levels up for "
                f"{len(blocks_down)} levels down; blocks_up is {list(blocks_up)}: give {len(blocks_down) - 1} numbers"
            )
        super().__init__(
            spatial_dims=3,
            init_filters=init_filters,
            in_channels=in_channels,
            out_channels=out_channels,
            dropout_prob=dropout or None,
            blocks_down=blocks_down,
            blocks_up=blocks_up,
        )
        self.size_multiple = 2 ** (len(blocks_down) - 1)
        self.level_features = tuple(init_filters * 2**level for level in range(len(blocks_down)))
        self.coarse_features = self.level_features[-1]

    def stages(self) -> list[Stage]:
        """Return a stage per level of the encoder and of the decoder, then the head."""
        deeper = [(f"down_layers.{level}",) for level in range(1, len(self.down_layers))]
        down = [("convInit", "down_layers.0"), *deeper]
        up = [(f"up_samples.{level}", f"up_layers.{level}") for level in range(len(self.up_layers))]
        encoder = [Stage(f"encoder.{level}", "encoder", modules) for level, modules in enumerate(down)]
        decoder = [Stage(f"decoder.{level}", "decoder", modules) for level, modules in enumerate(up)]
        return [*encoder, *decoder, Stage("head", "head", ("conv_final",))]

    def levels(self, image: Image) -> list[Maps]:
        """Return the features of each level of the encoder."""
        self.check_size(image)
        return self.encode(image)[1]

    def reductions(self) -> list[tuple[int, int, int]]:
        """Return 1, 2, 4 and so on."""
        return [(2**level,) * 3 for level in range(len(self.down_layers))]

    def forward(self, x: Image) -> Logits:  # `x`: MONAI's name, so that calls by keyword go on working
        """Return logits on the grid of the image."""
        self.check_size(x)
        return super().forward(x)
