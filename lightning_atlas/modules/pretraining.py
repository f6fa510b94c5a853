"""Supervised pre-training on scans whose voxels are labelled."""

from lightning_atlas.modules.base import AtlasModule


class SupervisedPretraining(AtlasModule):
    """Train every stage of a network on labelled scans, so that others can start from the result.

    Source: Li et al. 2024, *How Well Do Supervised 3D Models Transfer to Medical Imaging Tasks?* (SuPreM).
    """
