"""Source weights: read safely, matched strictly, reported in full, and handed on."""

from lightning_atlas.intake.adapters import Adapter, InputChannels, KernelSize, NearestStage, PositionEmbeddings
from lightning_atlas.intake.depth_weights import DepthWeights
from lightning_atlas.intake.inflation import start_at_prior
from lightning_atlas.intake.loading import IntakeReport, load_weights, read_weights
from lightning_atlas.intake.two_d import Inflation, KernelAxes
from lightning_atlas.intake.weights import SourceWeights, read_card, write_weights
from lightning_atlas.intake.zoo import ZooEntry, entries, find, write_entry

__all__ = [
    "Adapter",
    "DepthWeights",
    "Inflation",
    "InputChannels",
    "IntakeReport",
    "KernelAxes",
    "KernelSize",
    "NearestStage",
    "PositionEmbeddings",
    "SourceWeights",
    "ZooEntry",
    "entries",
    "find",
    "load_weights",
    "read_card",
    "read_weights",
    "start_at_prior",
    "write_entry",
    "write_weights",
]
