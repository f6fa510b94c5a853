"""Data: sources that list scans, a store that prepares them once, and the module that makes batches of them."""

from lightning_atlas.data.air import RescaleAboveAir
from lightning_atlas.data.augmentation.augment import BatchAugmentation
from lightning_atlas.data.augmentation.pictures import (
    CentreCrop,
    RandomCrop,
    RandomResizedCrop,
    RandomResizePicture,
    ResizePicture,
)
from lightning_atlas.data.augmentation.slices import ColoursToSlices, RandomColoursToSlices
from lightning_atlas.data.augmentation.turns import RandomQuarterTurns
from lightning_atlas.data.box_targets import BoxTargets, LabelBoxes, SourceBoxes
from lightning_atlas.data.cases import Case, DrawnOn, Mark, Source
from lightning_atlas.data.embedded import EmbeddedScan
from lightning_atlas.data.labels.classes import Classes
from lightning_atlas.data.module import ScanDataModule
from lightning_atlas.data.natural import PictureDataModule
from lightning_atlas.data.patches import Patches
from lightning_atlas.data.slice_spacing import ResampleSlices
from lightning_atlas.data.sources.cohort import SimulatedCohort
from lightning_atlas.data.sources.drawn import DrawnPictures
from lightning_atlas.data.sources.folder import ScanFolder, ScanLayout, ScanTable
from lightning_atlas.data.sources.layouts import read_layout
from lightning_atlas.data.sources.manifest import Manifest
from lightning_atlas.data.sources.mixture import Mixture
from lightning_atlas.data.sources.splits import PlaneSplit, Splits
from lightning_atlas.data.sources.write_manifest import write_manifest
from lightning_atlas.data.targets import Targets
from lightning_atlas.data.world_boxes import WorldBoxes

__all__ = [
    "BatchAugmentation",
    "BoxTargets",
    "Case",
    "CentreCrop",
    "Classes",
    "ColoursToSlices",
    "DrawnOn",
    "DrawnPictures",
    "EmbeddedScan",
    "LabelBoxes",
    "Manifest",
    "Mark",
    "Mixture",
    "Patches",
    "PictureDataModule",
    "PlaneSplit",
    "RandomColoursToSlices",
    "RandomCrop",
    "RandomQuarterTurns",
    "RandomResizePicture",
    "RandomResizedCrop",
    "ResampleSlices",
    "RescaleAboveAir",
    "ResizePicture",
    "ScanDataModule",
    "ScanFolder",
    "ScanLayout",
    "ScanTable",
    "SimulatedCohort",
    "Source",
    "SourceBoxes",
    "Splits",
    "Targets",
    "WorldBoxes",
    "read_layout",
    "write_manifest",
]
