"""Data: sources that list scans, a store that prepares them once, and the module that makes batches of them."""

from lightning_atlas.data.cases import Case, Source
from lightning_atlas.data.cohort import SimulatedCohort
from lightning_atlas.data.embedded import EmbeddedScan
from lightning_atlas.data.folder import ScanFolder, ScanTable
from lightning_atlas.data.module import ScanDataModule
from lightning_atlas.data.sampling import Patches

__all__ = ["Case", "EmbeddedScan", "Patches", "ScanDataModule", "ScanFolder", "ScanTable", "SimulatedCohort", "Source"]
