"""Networks that find boxes."""

from lightning_atlas.networks.detection.base import Detector
from lightning_atlas.networks.detection.box_head import Refining
from lightning_atlas.networks.detection.box_losses import AnchorLoss
from lightning_atlas.networks.detection.faster import SliceDetector
from lightning_atlas.networks.detection.matching import AdaptiveMatcher, Matcher, OverlapMatcher
from lightning_atlas.networks.detection.proposals import Proposing
from lightning_atlas.networks.detection.retina import RetinaDetector
from lightning_atlas.networks.detection.suppression import BoxSelection, suppressed

__all__ = [
    "AdaptiveMatcher",
    "AnchorLoss",
    "BoxSelection",
    "Detector",
    "Matcher",
    "OverlapMatcher",
    "Proposing",
    "Refining",
    "RetinaDetector",
    "SliceDetector",
    "suppressed",
]
