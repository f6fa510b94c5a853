"""A U-Net whose encoder is a 3D ResNet, the one that MedicalNet publishes weights of."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from monai.networks.nets.flexible_unet import SegmentationHead, UNetDecoder
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.networks.base import Backbone, Coarse, Features, Stage
from lightning_atlas.types import Image, Logits

DEPTHS = {
    10: ("basic", (1, 1, 1, 1), "B"),
    18: ("basic", (2, 2, 2, 2), "A"),
    34: ("basic", (3, 4, 6, 3), "A"),
    50: ("bottleneck", (3, 4, 6, 3), "B"),
    101: ("bottleneck", (3, 4, 23, 3), "B"),
}
"""Kind of the blocks, how many each layer has, and the shortcut where a block changes the shape, as published."""

Level = Float[Tensor, "batch ..."]


class ResNetUNet(Backbone):
    """U-Net of MONAI's 3D ResNet as the encoder and the decoder of MONAI's `FlexibleUNet`, with the latter's names.

    Source: Chen et al., "Med3D: Transfer Learning for 3D Medical Image Analysis", 2019,
    https://arxiv.org/abs/1904.00625, and https://github.com/Tencent/MedicalNet for the encoder; MONAI's `FlexibleUNet`
    for the rest.
    Differs: MedicalNet segments from a single grid, an eighth of the image's, on which its last two layers are dilated
    by 2 and 4. Here these layers halve the grid, as a U-Net needs it, and only the first convolution of each is
    dilated, by 2: the features are then MedicalNet's, at every second and every fourth voxel. All tensors have
    MedicalNet's shapes. MONAI's `FlexibleUNet` dilates nothing, so from the same weights it computes something else.
    Shortcuts without parameters (18 and 34 layers) carry gradients, which in MONAI and MedicalNet they do not.

    Args:
        in_channels: Channels of the image.
        out_channels: Outputs; a run sets them from its classes.
        depth: Layers of the encoder: 10, 18, 34, 50 or 101.
        init_filters: Channels of the first convolution; the published encoders have 64.
        decoder_features: Channels of each level of the decoder, from the coarsest to that of the image's grid.
    """

    size_multiple = 32

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        depth: Literal[10, 18, 34, 50, 101] = 10,
        init_filters: int = 64,
        decoder_features: Sequence[int] = (256, 128, 64, 32, 16),
    ) -> None:
        super().__init__()
        if len(decoder_features) != 5:
            raise ValueError(f"ResNetUNet has five decoder_features, one for each grid; found {list(decoder_features)}")
        self.depth = depth
        self.encoder = ResNetEncoder(in_channels, depth, init_filters)
        self.decoder = UNetDecoder(
            spatial_dims=3,
            encoder_channels=[in_channels, *self.encoder.widths],
            decoder_channels=decoder_features,
            act=("relu", {"inplace": True}),
            norm=("batch", {"eps": 1e-3, "momentum": 0.1}),
            dropout=0.0,
            bias=False,
            upsample="nontrainable",
            pre_conv="default",
            interp_mode="nearest",
            align_corners=None,
            is_pad=False,
        )
        self.segmentation_head = SegmentationHead(3, decoder_features[-1], out_channels)
        self.coarse_features, self.fine_features = self.encoder.widths[-1], decoder_features[-1]

    def stages(self) -> list[Stage]:
        """Return the first convolution, the four layers of the encoder, the levels of the decoder, and the head."""
        layers = [(f"encoder.layer{number}",) for number in range(1, 5)]
        down = [("encoder.conv1", "encoder.bn1"), *layers]
        up = [(f"decoder.blocks.{level}",) for level in range(5)]
        return [
            *(Stage(f"encoder.{level}", "encoder", modules) for level, modules in enumerate(down)),
            *(Stage(f"decoder.{level}", "decoder", modules) for level, modules in enumerate(up)),
            Stage("head", "head", ("segmentation_head",)),
        ]

    def conventions(self) -> dict[str, str]:
        """Return the depth: the first blocks of a deeper encoder nearly fill a shallower one of the same kind."""
        return {"depth": str(self.depth)}

    def check_size(self, image: Image) -> None:
        """Refuse an image that would not come back on its own grid, or that leaves nothing to take statistics of.

        Raises:
            ValueError: A side is not a multiple of 32, or in training all three are 32 in a batch of one.
        """
        super().check_size(image)
        if self.training and image.shape[0] == 1 and max(image.shape[2:]) == 32:
            raise ValueError(
                "ResNetUNet halves the grid five times, and batch norm cannot learn from the single voxel that is left "
                "of 32 x 32 x 32: set one side of the patches to 64 or more, or take two patches a batch"
            )

    def encoded(self, image: Image) -> Coarse:
        """Return the feature maps of the last layer of the encoder."""
        self.check_size(image)
        return self.encoder(image)[-1]

    def features(self, image: Image) -> Features:
        """Return the feature maps of the last layer of the encoder and of the last level up."""
        self.check_size(image)
        found = self.encoder(image)
        return Features(found[-1], self.decoder(found, skip_connect=4))

    def forward(self, image: Image) -> Logits:
        """Return logits on the grid of the image."""
        return self.segmentation_head(self.features(image).fine)


class ResNetEncoder(ResNet):
    """MONAI's ResNet, which returns its features on five grids, from half of the image's down.

    Args:
        channels: Of the image.
        depth: Layers.
        filters: Channels of the first convolution.
    """

    def __init__(self, channels: int, depth: int, filters: int) -> None:
        block, blocks, shortcut = DEPTHS[depth]
        widths = [filters * 2**level for level in range(4)]
        super().__init__(
            block=block,
            layers=list(blocks),
            block_inplanes=widths,
            n_input_channels=channels,
            conv1_t_stride=2,
            shortcut_type=shortcut,
            feed_forward=False,
            bias_downsample=False,
        )
        self.widths = [filters, *(width * (4 if block == "bottleneck" else 1) for width in widths)]
        for layer in (self.layer3, self.layer4):
            first = layer.get_submodule("0.conv2" if block == "bottleneck" else "0.conv1")
            assert isinstance(first, nn.Conv3d)
            first.dilation = first.padding = (2, 2, 2)

    def forward(self, x: Image) -> list[Level]:  # pyright: ignore[reportIncompatibleMethodOverride]  (as MONAI's own)
        """Return the features of the first convolution and of the four layers."""
        found = [self.act(self.bn1(self.conv1(x)))]
        found.append(self.layer1(self.maxpool(found[0])))
        for layer in (self.layer2, self.layer3, self.layer4):
            found.append(layer(found[-1]))
        return found

    def _downsample_basic_block(self, x: Level, planes: int, stride: int, spatial_dims: int = 3) -> Level:
        # MONAI's detaches `x`.
        return F.pad(x[..., ::stride, ::stride, ::stride], (0, 0) * spatial_dims + (0, planes - x.shape[1]))
