"""Networks that can name their stages."""

from lightning_atlas.networks.acs import ACSResNet
from lightning_atlas.networks.base import Backbone, Encoding, Network, Pyramid, Stage
from lightning_atlas.networks.collapse import DepthCollapse, depth_collapse
from lightning_atlas.networks.depth import DepthPolicy, set_depth
from lightning_atlas.networks.detection import (
    AdaptiveMatcher,
    AnchorLoss,
    BoxSelection,
    Detector,
    OverlapMatcher,
    Proposing,
    Refining,
    RetinaDetector,
    SliceDetector,
)
from lightning_atlas.networks.dodnet import DoDNet
from lightning_atlas.networks.foreign import as_network
from lightning_atlas.networks.genesis_unet import GenesisUNet
from lightning_atlas.networks.mednext import MedNeXt
from lightning_atlas.networks.nnunet import NnUNet
from lightning_atlas.networks.p3d import P3D
from lightning_atlas.networks.pooled import PooledEncoder
from lightning_atlas.networks.r3d import R3D
from lightning_atlas.networks.res_unet import LidcFCN, ResUNet
from lightning_atlas.networks.resnet_unet import ResNetUNet
from lightning_atlas.networks.segresnet import SegResNet
from lightning_atlas.networks.stu_net import STUNet
from lightning_atlas.networks.swin_unetr import SwinUNETR
from lightning_atlas.networks.unet import UNet
from lightning_atlas.networks.unimiss import UniMiSS
from lightning_atlas.networks.universal import UniversalNetwork
from lightning_atlas.networks.valid_unet import ValidUNet
from lightning_atlas.networks.volumetric import as_volumetric

__all__ = [
    "P3D",
    "R3D",
    "ACSResNet",
    "AdaptiveMatcher",
    "AnchorLoss",
    "Backbone",
    "BoxSelection",
    "DepthCollapse",
    "DepthPolicy",
    "Detector",
    "DoDNet",
    "Encoding",
    "GenesisUNet",
    "LidcFCN",
    "MedNeXt",
    "Network",
    "NnUNet",
    "OverlapMatcher",
    "PooledEncoder",
    "Proposing",
    "Pyramid",
    "Refining",
    "ResNetUNet",
    "ResUNet",
    "RetinaDetector",
    "STUNet",
    "SegResNet",
    "SliceDetector",
    "Stage",
    "SwinUNETR",
    "UNet",
    "UniMiSS",
    "UniversalNetwork",
    "ValidUNet",
    "as_network",
    "as_volumetric",
    "depth_collapse",
    "set_depth",
]
