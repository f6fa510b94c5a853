"""Networks that can name their stages."""

from lightning_atlas.networks.base import Network, Stage
from lightning_atlas.networks.foreign import as_network
from lightning_atlas.networks.segresnet import SegResNet
from lightning_atlas.networks.unet import UNet

__all__ = ["Network", "SegResNet", "Stage", "UNet", "as_network"]
