"""The one way to a file's header and voxels, whatever its format."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchio as tio
from jaxtyping import Int32

from lightning_atlas.data.formats.container import COPY_AGAIN, BadFileError, Container, Header, Voxels
from lightning_atlas.data.formats.metaimage import metaimage_voxels, open_metaimage
from lightning_atlas.data.formats.nifti import open_nifti
from lightning_atlas.data.formats.nodule import ENDING as NODULE, open_nodule
from lightning_atlas.data.formats.nrrd import nrrd_voxels, open_nrrd
from lightning_atlas.data.formats.pictures import open_picture
from lightning_atlas.data.formats.series import is_series, open_series, slices

VOLUMES = {
    ".nii.gz": open_nifti,
    ".nii": open_nifti,
    ".seg.nrrd": open_nrrd,
    ".nrrd": open_nrrd,
    ".nhdr": open_nrrd,
    ".mha": open_metaimage,
    ".mhd": open_metaimage,
}
PICTURES = (".png", ".jpg", ".jpeg")
DETACHED = (".mhd", ".nhdr")
"""Headers whose voxels lie in a file of their own."""
ENDINGS = (*VOLUMES, *PICTURES)
"""What the names of images end in, in small or capital letters; the longer of two comes first."""
Watch = Callable[[Container, Voxels], None]
"""Is shown the voxels of a file as they are read, float32 for intensities and int32 for labels."""
LABEL_KINDS = (np.uint8, np.int16, np.int32)
FIRST_FEW = 5


def ending(path: Path) -> str:
    """Return which of `ENDINGS` a name has, in small letters; empty if none."""
    return next((each for each in ENDINGS if path.name.lower().endswith(each)), "")


def stem(path: Path) -> str:
    """Return the name without its ending: `liver_3` of `liver_3.nii.gz`; of a folder, its name."""
    return path.name[: len(path.name) - len(ending(path))]


def is_image(path: Path) -> bool:
    """Tell whether a name is an image's, or a folder holds a DICOM series."""
    return not path.name.startswith(".") and (bool(ending(path)) or is_series(path))


def is_picture(path: Path) -> bool:
    """Tell whether a name is a PNG's or JPEG's."""
    return ending(path) in PICTURES


def parts(path: Path) -> list[Path]:
    """Return the files in which an image lies: the slices of a DICOM series, or a header and the file of its voxels.

    Raises:
        BadFileError: A header names no such file.
    """
    if path.is_dir():
        return slices(path)
    if ending(path) in DETACHED:
        return list(dict.fromkeys([path, metaimage_voxels(path) if ending(path) == ".mhd" else nrrd_voxels(path)]))
    return [path]


def read_header(path: Path) -> Header:
    """Read what a file says of itself; no voxels.

    Raises:
        BadFileError: The header is damaged, implausible, or declares more than fits into memory.
    """
    return open_container(path).header


def read_image(path: Path, watch: Watch | None = None) -> tio.ScalarImage:
    """Read intensities as float32, `(channels, i, j, k)`.

    Args:
        path: An image, or the folder of a DICOM series.
        watch: Is shown the voxels.

    Raises:
        BadFileError: The file is damaged, or has voxels that are no finite numbers.
    """
    container = open_container(path)
    values = np.empty(_count(container.header), np.float32)
    place = 0
    for chunk in container.values():
        single = finite(path, chunk)
        if watch is not None:
            watch(container, single)
        values[place : place + len(chunk)] = single
        place += len(chunk)
    tensor = torch.from_numpy(container.arranged(values))
    return tio.ScalarImage(tensor=tensor, affine=container.header.affine)


def read_labels(path: Path, watch: Watch | None = None) -> tio.LabelMap:
    """Read label values as the smallest integers that hold them, `(layers, i, j, k)`.

    Args:
        path: A file.
        watch: Is shown the values.

    Raises:
        BadFileError: The file is damaged, or has values that are no whole numbers.
    """
    container = open_container(path, labels=True)
    values, low, high, place = np.empty(_count(container.header), np.uint8), 0, 0, 0
    for chunk in container.values():
        numbers = whole_numbers(path, chunk)
        if watch is not None:
            watch(container, numbers)
        low, high = min(low, int(numbers.min())), max(high, int(numbers.max()))
        kind = next(each for each in LABEL_KINDS if np.iinfo(each).min <= low and high <= np.iinfo(each).max)
        values = values.astype(kind, copy=False)
        values[place : place + len(chunk)] = numbers
        place += len(chunk)
    tensor = torch.from_numpy(container.arranged(values))
    return tio.LabelMap(tensor=tensor, affine=container.header.affine)


def finite(path: Path, values: Voxels) -> Voxels:
    """Return intensities as float32.

    Raises:
        BadFileError: Some are no finite numbers.
    """
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    if not np.isfinite(single).all():
        found = "has voxels that are no finite numbers (NaN or infinite)"
        raise BadFileError(path, found, "replace them, or export it again")
    return single


def whole_numbers(path: Path, values: Voxels) -> Int32[np.ndarray, " voxels"]:
    """Return label values as integers.

    Raises:
        BadFileError: Some are no whole numbers, or beyond 32 bits.
    """
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.rint(values))
        if not whole.all():
            some = ", ".join(f"{each:g}" for each in np.unique(values[~whole])[:FIRST_FEW])
            found = f"has label values that are no whole numbers: {some}"
            raise BadFileError(path, found, "they were interpolated: export or resample it with the nearest neighbour")
    low, high = values.min(), values.max()
    if low < np.iinfo(np.int32).min or high > np.iinfo(np.int32).max:
        raise BadFileError(path, f"has label values from {low:g} to {high:g}", "export it as an integer label map")
    return values.astype(np.int32, copy=False)


def open_container(path: Path, labels: bool = False) -> Container:
    """Read a header and find the voxels.

    Args:
        path: An image, or the folder of a DICOM series.
        labels: Its voxels are label values, not intensities.

    Raises:
        BadFileError: There is no such file, or its header cannot be right.
    """
    try:
        with np.errstate(all="ignore"):  # what comes of wrong numbers is looked at
            if path.is_dir():
                if labels:
                    raise BadFileError(path, "is a folder, where labels are expected", "name the file of the labels")
                return open_series(path)
            _check_regular(path)
            if is_picture(path):
                return open_picture(path, labels)
            if path.name.lower().endswith(NODULE):  # of which a layout knows; elsewhere such a file is no image
                return open_nodule(path, labels)
            if known := VOLUMES.get(ending(path)):
                return known(path)
    except OSError as error:
        raise BadFileError(path, f"cannot be read ({error.strerror or error})", "see to its permissions") from error
    raise BadFileError(path, "is of no known format", f"the names of images end in {' '.join(ENDINGS)}")


def _check_regular(path: Path) -> None:
    if not path.exists():
        link = f" (a link to {path.readlink()})" if path.is_symlink() else ""
        raise BadFileError(path, f"does not exist{link}", "correct the path, or copy the file there")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadFileError(path, "is no regular file", "put the file itself there")
    if not status.st_size:
        raise BadFileError(path, "is empty (0 bytes)", COPY_AGAIN)
    if not os.access(path, os.R_OK):
        raise BadFileError(path, "may not be read by you", "see to its permissions")


def _count(header: Header) -> int:
    return header.channels * int(np.prod(header.shape))
