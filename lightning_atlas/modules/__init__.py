"""How one learns: supervised pre-training and transfer."""

from lightning_atlas.modules.base import AtlasModule
from lightning_atlas.modules.pretraining import SupervisedPretraining
from lightning_atlas.modules.transfer import TransferLearning

__all__ = ["AtlasModule", "SupervisedPretraining", "TransferLearning"]
