"""Where a scan is air, by one rule, and the intensities above it."""

from typing import Any

import numpy as np
import torch
import torchio as tio
from jaxtyping import Bool, Float
from torchio.transforms import RescaleIntensity

from lightning_atlas.contract import LEVELS

SHARE = 8
"""For SPM's `spm_global`, what is darker than an eighth of the mean of all voxels lies outside of the body. Here it is
the mean of the rest, so that the field of view has no say."""
ROUNDS = 10
"""After which threshold and mean agree, since a round changes the threshold by an eighth of the mean's change."""
FLOOR_PERCENTILE = 1.0
"""Brightness is counted from here: intensities may start below 0, and resampling leaves single voxels far below."""
SIDE = 128
"""At most so many voxels along each axis are looked at."""


def above_air(image: Float[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
    """Return which voxels of a volume are no air: brighter than an eighth of the mean of all that are no air.

    A volume of one value is no air anywhere.
    """
    sample = image[tuple(slice(None, None, -(-side // SIDE)) for side in image.shape)].astype(np.float64)
    floor = float(np.percentile(sample, FLOOR_PERCENTILE))
    rest = sample[sample > floor] - floor
    if not len(rest):
        return image >= floor
    threshold = 0.0
    for _ in range(ROUNDS):
        threshold = rest[rest > threshold].mean() / SHARE
    return image > floor + threshold


def levels_above_air(image: Float[np.ndarray, "channels i j k"]) -> list[list[float]]:
    """Return the percentiles `LEVELS` of the voxels that are no air, for each channel."""
    steps = tuple(slice(None, None, -(-side // SIDE)) for side in image.shape[1:])
    samples = (channel[steps].astype(np.float32) for channel in image)
    return [np.percentile(sample[above_air(sample)], LEVELS).tolist() for sample in samples]


class RescaleAboveAir(RescaleIntensity):
    """Take percentiles of a volume's voxels that are no air to the ends of a range, each channel on its own.

    For scans without units, as MR. Air has its share of a scan by the field of view alone, so percentiles of all voxels
    differ between two scans of one patient. Beyond the percentiles is clipped, so air becomes the lower end.

    Args:
        out_min_max: The range.
        percentiles: Taken to its ends.
        kwargs: Those of every TorchIO transform.
    """

    def __init__(
        self,
        out_min_max: tuple[int | float, int | float] = (0, 1),
        percentiles: tuple[int | float, int | float] = (0.5, 99.5),
        **kwargs: Any,
    ) -> None:
        super().__init__(out_min_max=out_min_max, percentiles=percentiles, **kwargs)
        self.args_names = ["out_min_max", "percentiles"]

    def apply_normalization(self, subject: tio.Subject, image_name: str, mask: torch.Tensor) -> None:
        """Rescale one image of a subject."""
        image = subject.get_image(image_name)
        channels = [
            self.rescale(channel[None], torch.from_numpy(above_air(channel.float().numpy()))[None], image_name)
            for channel in image.data
        ]
        image.set_data(torch.cat(channels))
