"""A folder that holds one DICOM series, sorted and read by ITK."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from SimpleITK import GetArrayViewFromImage, ImageFileReader, ImageSeriesReader, sitkFloat32

from lightning_atlas.data.formats.container import COPY_AGAIN, BadFileError, Container, make_header
from lightning_atlas.data.formats.geometry import TO_RAS, affine_of, itk_header

LOOKED_AT = 16
"""Files of a folder that are looked at to tell whether it is a series."""
GAP_TOLERANCE = 0.2
"""Positions are often rounded to 0.1 mm; a missing slice doubles a gap."""
SAME_PLACE_MM = 1e-3
FIRST_FEW = 5
DESCRIPTION, POSITION, ORIENTATION, MODALITY = "0008|103e", "0020|0032", "0020|0037", "0008|0060"


def is_series(folder: Path) -> bool:
    """Tell whether a folder holds DICOM files, by the mark that stands in each."""
    return folder.is_dir() and any(_has_mark(path) for path in slices(folder)[:LOOKED_AT])


def series_modality(folder: Path) -> str | None:
    """Return what a series says made it, `CT` or `MR`; `None` where it does not say, or the folder holds none."""
    first = next((path for path in slices(folder)[:LOOKED_AT] if _has_mark(path)), None)
    if first is None:
        return None
    header = itk_header(first)
    stated = header.GetMetaData(MODALITY).strip() if header.HasMetaDataKey(MODALITY) else ""
    return stated or None


def open_series(folder: Path) -> Container:
    """Read the headers of a series.

    Raises:
        BadFileError: There is none, there are several, or its slices do not make one regular volume.
    """
    files = _files(folder)
    readers = [itk_header(path) for path in files]
    first = readers[0]
    affine = affine_of(files[0], first)
    size = first.GetSize()
    if len(files) > 1:
        _check_alike(folder, files, readers)
        normal = np.array(first.GetDirection()).reshape(3, 3)[:, 2]
        order = np.argsort([normal @ reader.GetOrigin() for reader in readers], kind="stable")
        files = [files[place] for place in order]
        places = np.array([readers[place].GetOrigin() for place in order])
        _check_gaps(folder, files, places @ normal)
        affine[:3, 2] = TO_RAS[:3, :3] @ (places[-1] - places[0]) / (len(files) - 1)
        affine[:3, 3] = TO_RAS[:3, :3] @ places[0]
        size = (*size[:2], len(files))
    if first.GetNumberOfComponents() != 1:
        found = f"holds colours ({first.GetNumberOfComponents()} values a voxel)"
        raise BadFileError(folder, found, "give the original series")
    header = make_header(folder, tuple(size), None, affine, np.dtype(np.float32))
    return Container(folder, header, tuple(size), None, partial(_voxels, folder, files))


def slices(folder: Path) -> list[Path]:
    """Return the files in a folder that may be slices."""
    hidden = (".", "DICOMDIR")
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(hidden)]


def _has_mark(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _files(folder: Path) -> list[Path]:
    own = [path for path in slices(folder) if path.suffix.lower() == ".dcm" or _has_mark(path)]
    found = ImageSeriesReader.GetGDCMSeriesIDs(str(folder)) if own else ()
    if not found:
        raise BadFileError(folder, "holds no DICOM series", "give the folder that holds the slices themselves")
    each = {uid: ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in found}
    if len(found) > 1:
        names = [f"{_described(Path(files[0]))} ({len(files)} files, {uid})" for uid, files in each.items()]
        raise BadFileError(folder, f"holds {len(found)} series: {', '.join(names)}", "give each a folder of its own")
    files = [Path(name) for name in each[found[0]]]
    if left := sorted({path.name for path in own} - {path.name for path in files}):
        some = f"{', '.join(left[:FIRST_FEW])}{' and more' if len(left) > FIRST_FEW else ''}"
        raise BadFileError(folder, f"holds what cannot be read as a slice: {some}", "copy it again, or take it out")
    return files


def _described(path: Path) -> str:
    reader = itk_header(path)
    return reader.GetMetaData(DESCRIPTION).strip() if reader.HasMetaDataKey(DESCRIPTION) else "unnamed"


def _check_alike(folder: Path, files: list[Path], readers: list[ImageFileReader]) -> None:
    first = readers[0]
    for path, reader in zip(files, readers, strict=True):
        same = reader.GetSize() == first.GetSize() and reader.GetSize()[2] == 1
        if not (reader.HasMetaDataKey(POSITION) and reader.HasMetaDataKey(ORIENTATION)):
            remedy = "export the original series, not a secondary capture"
            raise BadFileError(folder, f"has no position in {path.name}", remedy)
        turned = not np.allclose(reader.GetDirection(), first.GetDirection(), atol=1e-3)
        if not same or turned or not np.allclose(reader.GetSpacing()[:2], first.GetSpacing()[:2], rtol=1e-3):
            found = f"is no one volume: {path.name} differs from {files[0].name} in size, spacing or orientation"
            raise BadFileError(folder, found, "take out the slices of another series (a localizer)")


def _check_gaps(folder: Path, files: list[Path], heights: np.ndarray) -> None:
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    for (path, after), gap in zip(pairwise(files), gaps, strict=True):
        if gap < SAME_PLACE_MM:
            found = f"holds two slices at one position: {path.name} and {after.name}"
            raise BadFileError(folder, found, "give each phase or echo a folder of its own")
        if abs(gap - usual) > GAP_TOLERANCE * usual:
            found = f"has a gap of {gap:.3g} mm between {path.name} and {after.name}, elsewhere {usual:.3g} mm"
            raise BadFileError(folder, found, "copy the slices that are missing, or take out those that are too many")


def _voxels(folder: Path, files: list[Path]) -> Iterator[np.ndarray]:
    reader = ImageSeriesReader()
    reader.SetFileNames([str(path) for path in files])
    reader.SetOutputPixelType(sitkFloat32)  # each slice may be scaled by factors of its own
    try:
        image = reader.Execute()
    except RuntimeError as error:
        found = f"has a slice that cannot be read ({str(error).strip().splitlines()[-1]})"
        raise BadFileError(folder, found, COPY_AGAIN) from error
    yield GetArrayViewFromImage(image).ravel()
