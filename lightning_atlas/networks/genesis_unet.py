"""The U-Net of Models Genesis, which SuPreM and the Universal Model use too."""

from collections import OrderedDict
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.networks.base import Backbone, Coarse, Features, Stage
from lightning_atlas.types import Image, Logits

Maps = Float[Tensor, "batch features i j k"]

LEVELS = (64, 128, 256, 512)
"""Channels by which the published names count the levels, from the full resolution down."""


class GenesisUNet(Backbone):
    """U-Net of four levels, two convolutions with batch norm in each, and max-pooling, with the published tensor names.

    Source: Zhou et al., "Models Genesis", 2021, https://arxiv.org/abs/2004.07882; also the U-Net of Li et al., "How
    Well Do Supervised 3D Models Transfer to Medical Imaging Tasks?" (SuPreM), 2024, https://arxiv.org/abs/2501.11253.
    Differs: returns logits, as in SuPreM; Models Genesis ends in a sigmoid.

    The published weights were trained and are used with the statistics of the batch, in evaluation too, so that a
    prediction depends on what else is in the batch; with the stored statistics their results change. Set
    `batch_statistics` to use such weights as they are (and predict with windows of one batch size); leave it off to
    train on with an ordinary batch norm.

    Args:
        in_channels: Channels of the image.
        out_channels: Outputs; a run sets them from its classes.
        batch_statistics: Normalise by the batch in evaluation too, as the published weights were used; the stored
            statistics are then neither read nor written.
        init_filters: Channels of the very first convolution; the published network has 32.
    """

    size_multiple = 8

    def __init__(
        self, in_channels: int = 1, out_channels: int = 2, batch_statistics: bool = False, init_filters: int = 32
    ) -> None:
        super().__init__()
        self.batch_statistics = batch_statistics
        norm = BatchStatisticsNorm if batch_statistics else nn.BatchNorm3d
        widths = [init_filters * 2**level for level in range(1, 5)]
        self.fine_features, self.coarse_features = widths[0], widths[-1]
        levels = list(zip(LEVELS, widths, strict=True))
        for (name, here), above in zip(levels, [in_channels, *widths[:-1]], strict=True):
            ops = nn.Sequential(_convolution(above, here // 2, norm), _convolution(here // 2, here, norm))
            self.add_module(f"down_tr{name}", nn.Sequential(OrderedDict(ops=ops)))
        for (_, below), (name, here) in pairwise(reversed(levels)):
            self.add_module(f"up_tr{name}", UpTransition(below, here, norm))
        self.out_tr = nn.Sequential(OrderedDict(final_conv=nn.Conv3d(widths[0], out_channels, kernel_size=1)))

    def stages(self) -> list[Stage]:
        """Return a stage per level of the encoder and of the decoder, then the head."""
        down = [Stage(f"encoder.{level}", "encoder", (f"down_tr{name}",)) for level, name in enumerate(LEVELS)]
        up = [Stage(f"decoder.{level}", "decoder", (f"up_tr{name}",)) for level, name in enumerate(LEVELS[-2::-1])]
        return [*down, *up, Stage("head", "head", ("out_tr",))]

    def conventions(self) -> dict[str, str]:
        """Return whether the normalisation uses the statistics of the batch in evaluation."""
        return {"batch_statistics": str(self.batch_statistics).lower()}

    def encoded(self, image: Image) -> Coarse:
        """Return the feature maps of the deepest level."""
        return self._levels(image)[-1]

    def features(self, image: Image) -> Features:
        """Return the feature maps of the deepest level and of the last level up."""
        skips = self._levels(image)
        fine = below = skips[-1]
        for name, skip in zip(LEVELS[-2::-1], skips[-2::-1], strict=True):
            fine = self.get_submodule(f"up_tr{name}")(fine, skip)
        return Features(below, fine)

    def forward(self, image: Image) -> Logits:
        """Return logits on the grid of the image."""
        return self.out_tr(self.features(image).fine)

    def _levels(self, image: Image) -> list[Tensor]:
        self.check_size(image)
        found: list[Tensor] = []
        for name in LEVELS:
            found.append(self.get_submodule(f"down_tr{name}")(F.max_pool3d(found[-1], 2) if found else image))
        return found


class UpTransition(nn.Module):
    """Double the grid, join what the encoder had there, and convolve twice.

    Args:
        below: Channels of the level below.
        here: Channels of the encoder's level on this grid, and of the result.
        norm: Makes the normalisation of so many channels.
    """

    def __init__(self, below: int, here: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(below, below, kernel_size=2, stride=2)
        self.ops = nn.Sequential(_convolution(below + here, here, norm), _convolution(here, here, norm))

    def forward(self, below: Coarse, skip: Float[Tensor, "batch skip_features i j k"]) -> Maps:
        """Return features on the grid of `skip`."""
        return self.ops(torch.cat([self.up_conv(below), skip], dim=1))


class BatchStatisticsNorm(nn.Module):
    """Batch norm by the statistics of the batch, always; those that it stores are carried along untouched.

    Not a subclass of torch's batch norm: what turns that into another (across ranks, say) would undo this one.

    Args:
        features: Channels.
        eps: Added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, maps: Maps) -> Maps:
        """Return each channel with the mean of its bias and the spread of its weight over batch and grid."""
        return F.batch_norm(maps, None, None, self.weight, self.bias, training=True, eps=self.eps)


def _convolution(inputs: int, outputs: int, norm: type[nn.Module]) -> nn.Sequential:
    convolution = nn.Conv3d(inputs, outputs, kernel_size=3, padding=1)
    return nn.Sequential(OrderedDict(conv1=convolution, bn1=norm(outputs), activation=nn.ReLU(inplace=True)))
