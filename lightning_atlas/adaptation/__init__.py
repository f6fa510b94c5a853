"""Source weights and what moves: intake, published weights, freezing and learning rates by stage."""

from lightning_atlas.adaptation.inflation import start_at_prior
from lightning_atlas.adaptation.intake import IntakeReport, load_weights, read_weights
from lightning_atlas.adaptation.schedules import ConstantSchedule, CosineSchedule, PolynomialSchedule, Schedule
from lightning_atlas.adaptation.stages import (
    Adaptation,
    FrozenEncoder,
    FullFineTuning,
    HeadOnly,
    LayerWiseDecay,
    combined,
    freeze,
    fresh_stages,
    frozen_stages,
    parameter_groups,
    set_modes,
    stage_table,
)
from lightning_atlas.adaptation.weights import SourceWeights, read_card, write_weights
from lightning_atlas.adaptation.zoo import ZooEntry, entries, find, write_entry

__all__ = [
    "Adaptation",
    "ConstantSchedule",
    "CosineSchedule",
    "FrozenEncoder",
    "FullFineTuning",
    "HeadOnly",
    "IntakeReport",
    "LayerWiseDecay",
    "PolynomialSchedule",
    "Schedule",
    "SourceWeights",
    "ZooEntry",
    "combined",
    "entries",
    "find",
    "freeze",
    "fresh_stages",
    "frozen_stages",
    "load_weights",
    "parameter_groups",
    "read_card",
    "read_weights",
    "set_modes",
    "stage_table",
    "start_at_prior",
    "write_entry",
    "write_weights",
]
