"""Geometry of the formats that ITK reads, in RAS."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from SimpleITK import ImageFileReader

from lightning_atlas.data.formats.container import EXPORT_AGAIN, BadFileError

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def itk_header(path: Path) -> ImageFileReader:
    """Let ITK read a header; no voxels.

    Raises:
        BadFileError: It cannot.
    """
    reader = ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:  # what ITK raises, whatever is wrong
        reason = str(error).strip().splitlines()[-1].removeprefix("ITK ERROR: ")
        raise BadFileError(path, f"has a header that ITK cannot read ({reason})", EXPORT_AGAIN) from error
    return reader


def affine_of(path: Path, reader: ImageFileReader) -> Float[np.ndarray, "4 4"]:
    """Return the affine from voxels to millimetres (RAS).

    Raises:
        BadFileError: The file has not three axes in space.
    """
    if reader.GetDimension() != 3:
        raise BadFileError(path, f"has {reader.GetDimension()} axes in space", "save it as one volume with three axes")
    affine = np.eye(4)
    affine[:3, :3] = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
    affine[:3, 3] = reader.GetOrigin()
    return TO_RAS @ affine
