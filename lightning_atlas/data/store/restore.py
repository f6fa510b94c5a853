"""Back from the network's grid to the file's own, voxel by voxel."""

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from lightning_atlas.data.store.prepare import Prepared

PLANES_AT_A_TIME = 16
FARTHEST = 1.001
"""A grid whose size is rounded down to whole voxels may end up to one voxel before the file's."""


def to_file_grid(prediction: Integer[Tensor, "i j k"], prepared: Prepared) -> Integer[Tensor, "i2 j2 k2"]:
    """Give each voxel of the file the value of the nearest voxel of the prediction.

    Where the network's grid is not coarser than the file's this undoes a nearest-voxel resampling to the voxel. Voxels
    farther than one voxel outside the prediction (what a transform cropped away) become 0.

    Raises:
        ValueError: The prediction has not the shape of the prepared case.
    """
    if tuple(prediction.shape) != prepared.shape:
        raise ValueError(f"the prediction has shape {tuple(prediction.shape)}, but the prepared case {prepared.shape}")
    to_network = np.linalg.inv(np.array(prepared.affine)) @ np.array(prepared.file_affine)
    values, last = prediction.cpu().numpy(), np.array(prepared.shape) - 1
    result = np.zeros(prepared.file_shape, dtype=values.dtype)
    j, k = np.meshgrid(*(np.arange(size) for size in prepared.file_shape[1:]), indexing="ij")
    for begin in range(0, prepared.file_shape[0], PLANES_AT_A_TIME):
        i = np.arange(begin, min(begin + PLANES_AT_A_TIME, prepared.file_shape[0]))
        places = [row[0] * i[:, None, None] + row[1] * j + row[2] * k + row[3] for row in to_network[:3]]
        near = [np.clip(np.rint(place), 0, end).astype(np.int64) for place, end in zip(places, last, strict=True)]
        outside = [np.abs(place - inside) > FARTHEST for place, inside in zip(places, near, strict=True)]
        result[i] = np.where(np.any(outside, axis=0), 0, values[tuple(near)])
    return torch.from_numpy(result)
