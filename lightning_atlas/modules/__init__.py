"""How one learns: supervised pre-training, on scans or on pictures, and transfer."""

from lightning_atlas.modules.base import AtlasModule
from lightning_atlas.modules.pretraining import SupervisedPretraining
from lightning_atlas.modules.transfer import TransferLearning
from lightning_atlas.modules.variable_dimension import VariableDimensionPretraining

__all__ = ["AtlasModule", "SupervisedPretraining", "TransferLearning", "VariableDimensionPretraining"]
