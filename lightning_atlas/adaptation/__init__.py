"""What moves, when and how fast: adaptations, the plan that they make, and schedules of the learning rate."""

from lightning_atlas.adaptation.auto_rgn import AutoRGN
from lightning_atlas.adaptation.base import Adaptation
from lightning_atlas.adaptation.catalogue import (
    BiasOnly,
    FrozenEncoder,
    FullFineTuning,
    HeadMultiplier,
    HeadOnly,
    LastStages,
    LayerWiseDecay,
    NormOnly,
    SurgicalBlock,
)
from lightning_atlas.adaptation.delta import DELTA
from lightning_atlas.adaptation.ema import EMA
from lightning_atlas.adaptation.l2_sp import L2SP
from lightning_atlas.adaptation.lora import LoRA
from lightning_atlas.adaptation.phases import LPFT, GradualThaw, HeadsFirst, LastStagesFirst, Sawtooth, Valley, WarmUp
from lightning_atlas.adaptation.plan import AdaptationPlan
from lightning_atlas.adaptation.schedules import (
    ConstantSchedule,
    CosineSchedule,
    PolynomialSchedule,
    Schedule,
    StepSchedule,
)
from lightning_atlas.adaptation.statistics import reestimate_statistics
from lightning_atlas.adaptation.stochastic_norm import StochasticNorm

__all__ = [
    "DELTA",
    "EMA",
    "L2SP",
    "LPFT",
    "Adaptation",
    "AdaptationPlan",
    "AutoRGN",
    "BiasOnly",
    "ConstantSchedule",
    "CosineSchedule",
    "FrozenEncoder",
    "FullFineTuning",
    "GradualThaw",
    "HeadMultiplier",
    "HeadOnly",
    "HeadsFirst",
    "LastStages",
    "LastStagesFirst",
    "LayerWiseDecay",
    "LoRA",
    "NormOnly",
    "PolynomialSchedule",
    "Sawtooth",
    "Schedule",
    "StepSchedule",
    "StochasticNorm",
    "SurgicalBlock",
    "Valley",
    "WarmUp",
    "reestimate_statistics",
]
