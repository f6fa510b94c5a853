"""What a run shows, expects, reports and writes."""

from lightning_atlas.callbacks.baseline import NearestPlaneBaseline
from lightning_atlas.callbacks.decision import PatientDecision
from lightning_atlas.callbacks.expectation import Expectation
from lightning_atlas.callbacks.memory import memory_advice
from lightning_atlas.callbacks.movement import Movement
from lightning_atlas.callbacks.native import NativeScores
from lightning_atlas.callbacks.penalty import KernelPenalty
from lightning_atlas.callbacks.prediction import PredictionWriter
from lightning_atlas.callbacks.prediction_boxes import BoxWriter
from lightning_atlas.callbacks.prediction_table import PredictionTable
from lightning_atlas.callbacks.progress import WholeRunProgress
from lightning_atlas.callbacks.rates import RatesPicture
from lightning_atlas.callbacks.report import RunReport
from lightning_atlas.callbacks.scan_check import ScanCheck

__all__ = [
    "BoxWriter",
    "Expectation",
    "KernelPenalty",
    "Movement",
    "NativeScores",
    "NearestPlaneBaseline",
    "PatientDecision",
    "PredictionTable",
    "PredictionWriter",
    "RatesPicture",
    "RunReport",
    "ScanCheck",
    "WholeRunProgress",
    "memory_advice",
]
