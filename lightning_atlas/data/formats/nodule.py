"""Crops around lung nodules as the ACS benchmark publishes LIDC-IDRI: `.npz` with `voxel` and `answer1` to `answer4`.

Source: https://github.com/M3DV/ACSConv (experiments/lidc/lidc_dataset.py, experiments/mylib/voxel_transform.py).
"""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lightning_atlas.data.formats.container import COPY_AGAIN, BadFileError, Container, make_header

ENDING = ".npz"
VOXEL = "voxel"
ANSWERS = ("answer1", "answer2", "answer3", "answer4")
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""One millimetre a voxel; arrays are z, y, x of axial planes. That z runs upwards is not documented."""


def open_nodule(path: Path, labels: bool) -> Container:
    """Read a crop, which is small; of labels, each reader's answer is a layer.

    Raises:
        BadFileError: It is no such archive, or an answer has another grid than the crop.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = [name for name in (ANSWERS if labels else (VOXEL,)) if name in archive]
            arrays = [np.ascontiguousarray(archive[name]) for name in names]
            shape = archive[VOXEL].shape if VOXEL in archive else ()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadFileError(path, f"is damaged or no npz ({error})", COPY_AGAIN) from error
    if not names or not shape:
        raise BadFileError(path, f"has no {VOXEL}, or none of {', '.join(ANSWERS)}", COPY_AGAIN)
    if odd := [name for name, array in zip(names, arrays, strict=True) if array.shape != shape]:
        raise BadFileError(path, f"has a {odd[0]} on another grid than {VOXEL}", COPY_AGAIN)
    arrays = [array.astype(np.uint8) if array.dtype == bool else array for array in arrays]
    sizes, channels = (*reversed(shape), len(names)), len(shape)
    header = make_header(path, sizes, channels, LPS, arrays[0].dtype)

    def stored() -> Iterator[np.ndarray]:
        yield from (array.ravel() for array in arrays)

    return Container(path, header, sizes, channels, stored)
