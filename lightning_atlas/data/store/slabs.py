"""Reads the planes of a slab as one image."""

from pathlib import Path

import numpy as np
import torch
import torchio as tio
from jaxtyping import Float
from torch import Tensor

from lightning_atlas.data.formats import BadFileError, Watch, read_image
from lightning_atlas.data.slab import Slab, numbered


def read_slab(slab: Slab, middle: Path, watch: Watch | None = None) -> tio.ScalarImage:
    """Return the planes: columns are i and run to the left, rows j to the back, planes k downwards.

    Args:
        slab: Which planes.
        middle: Picture of the plane in the middle.
        watch: Is shown the values.

    Raises:
        BadFileError: A file is damaged, has colours, or is of another size than the others.
    """
    found = {number: _plane(numbered(middle, number), watch) for number in slab.numbers(middle)}
    sizes = {tuple(plane.shape) for plane in found.values()}
    if len(sizes) > 1:
        raise BadFileError(middle, f"and its neighbours have unlike sizes {sorted(sizes)}", "copy them again")
    planes = [torch.lerp(found[low], found[high], share) for low, high, share in slab.parts(middle)]
    i, j = (each if each > 0 else 1.0 for each in slab.spacing_mm[:2])
    affine = np.diag([-i, -j, -slab.interval_mm, 1.0])
    return tio.ScalarImage(tensor=torch.stack(planes, dim=-1)[None] + slab.offset, affine=affine)


def _plane(path: Path, watch: Watch | None) -> Float[Tensor, "i j"]:
    image = read_image(path, watch).data
    if image.shape[0] != 1 or image.shape[3] != 1:
        raise BadFileError(path, "holds colours", "copy the picture with 16 bits of grey again")
    return image[0, :, :, 0]
