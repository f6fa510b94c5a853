"""Networks that can name their stages."""

from lightning_atlas.networks.base import Backbone, Encoding, Network, Pyramid, Stage
from lightning_atlas.networks.dodnet import DoDNet
from lightning_atlas.networks.foreign import as_network
from lightning_atlas.networks.genesis_unet import GenesisUNet
from lightning_atlas.networks.mednext import MedNeXt
from lightning_atlas.networks.nnunet import NnUNet
from lightning_atlas.networks.pooled import PooledEncoder
from lightning_atlas.networks.resnet_unet import ResNetUNet
from lightning_atlas.networks.segresnet import SegResNet
from lightning_atlas.networks.stu_net import STUNet
from lightning_atlas.networks.swin_unetr import SwinUNETR
from lightning_atlas.networks.unet import UNet
from lightning_atlas.networks.unimiss import UniMiSS
from lightning_atlas.networks.universal import UniversalNetwork
from lightning_atlas.networks.valid_unet import ValidUNet

__all__ = [
    "Backbone",
    "DoDNet",
    "Encoding",
    "GenesisUNet",
    "MedNeXt",
    "Network",
    "NnUNet",
    "PooledEncoder",
    "Pyramid",
    "ResNetUNet",
    "STUNet",
    "SegResNet",
    "Stage",
    "SwinUNETR",
    "UNet",
    "UniMiSS",
    "UniversalNetwork",
    "ValidUNet",
    "as_network",
]
