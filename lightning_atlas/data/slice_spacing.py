"""Slices at another distance, while the planes stay as they are."""

from typing import Any

import numpy as np
from torchio import Subject
from torchio.transforms import Resample, SpatialTransform


class ResampleSlices(SpatialTransform):
    """Resample along k alone; voxels in the planes stay as the file has them.

    The first slice stays where it is, and none lies behind the last one.

    Args:
        spacing_mm: Distance of the new slices.
        kwargs: Those of every TorchIO transform.

    Raises:
        ValueError: It is not above 0.
    """

    def __init__(self, spacing_mm: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if spacing_mm <= 0:
            raise ValueError(f"ResampleSlices: slices lie more than 0 mm apart, found spacing_mm: {spacing_mm}")
        self.spacing_mm = spacing_mm
        self.args_names = ["spacing_mm"]

    def apply_transform(self, subject: Subject) -> Subject:
        """Resample all images of a subject."""
        i, j, slices = subject.spatial_shape
        step = self.spacing_mm / subject.spacing[2]
        affine = np.array(subject.get_first_image().affine)
        affine[:3, 2] *= step
        count = int((slices - 1) / step + 1e-6) + 1
        return Resample(((i, j, count), affine))(subject)
