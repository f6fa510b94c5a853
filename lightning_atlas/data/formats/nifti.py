"""NIfTI 1 and 2: header checked field against field, geometry as nibabel has it."""

import math
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float
from nibabel.spatialimages import HeaderDataError

from lightning_atlas.data.formats.container import (
    COPY_AGAIN,
    EXPORT_AGAIN,
    BadFileError,
    Container,
    displacement_voxels,
    make_header,
)
from lightning_atlas.data.formats.stream import Coding, first_bytes, voxel_stream

GZIP = b"\x1f\x8b"
LARGEST_EXTENSION = 2**26
MILLIMETRES = {1: 1000.0, 3: 1e-3}
"""Units of length other than millimetres: metres, micrometres."""
SCANNER_OR_ALIGNED = (1, 2)


def open_nifti(path: Path) -> Container:
    """Read the header of a `.nii` or `.nii.gz`.

    Raises:
        BadFileError: It contradicts itself or the file.
    """
    packed = path.name.lower().endswith(".gz")
    if packed != (first_bytes(path, 2, "raw") == GZIP):
        found = f"is {'not ' if packed else ''}gzip-compressed, other than its name says"
        raise BadFileError(path, found, f"rename it to {'.nii' if packed else '.nii.gz'}, or copy it again")
    coding: Coding = "deflate" if packed else "raw"
    header = _header(path, first_bytes(path, 540, coding))
    sizes = _sizes(path, header)
    dtype, offset = _dtype(path, header), _offset(path, header)
    slope, intercept = _scaling(path, header)
    channel_axis = 3 if len(sizes) == 4 else None
    affine, remarks = _affine(path, header)
    known = make_header(path, sizes, channel_axis, affine, dtype, (*remarks, *_contradictions(path, header, sizes)))
    stored = voxel_stream(path, dtype, math.prod(sizes), coding, skip=offset)
    return Container(path, known, sizes, channel_axis, stored, slope, intercept)


def _header(path: Path, block: bytes) -> nib.Nifti1Header:
    for kind, length, magic in ((nib.Nifti1Header, 348, b"n+1"), (nib.Nifti2Header, 540, b"n+2")):
        for endianness in "<>":
            if block[:4] == struct.pack(f"{endianness}i", length) and len(block) >= length:
                header = kind(block[:length], endianness=endianness, check=False)
                if bytes(header["magic"])[:3] == magic:
                    return header
    if len(block) < 348:
        raise BadFileError(path, f"is cut off in its header, after {len(block)} bytes", COPY_AGAIN)
    raise BadFileError(path, "is no NIfTI file inside", "copy it again, or rename it after what it is")


def _sizes(path: Path, header: nib.Nifti1Header) -> tuple[int, ...]:
    axes, *lengths = (int(each) for each in header["dim"])
    if not 1 <= axes <= 7:
        raise BadFileError(path, f"says that it has {axes} axes", EXPORT_AGAIN)
    lengths = lengths[:axes]
    while len(lengths) > 3 and lengths[-1] == 1:
        lengths.pop()
    if len(lengths) not in (3, 4) or min(lengths) < 1:
        said = "x".join(map(str, lengths))
        raise BadFileError(path, f"has the axes {said}", "save it as one volume with three axes (a slice is MxNx1)")
    return tuple(lengths)


def _dtype(path: Path, header: nib.Nifti1Header) -> np.dtype:
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError) as error:
        raise BadFileError(path, f"has voxels of the unknown type {int(header['datatype'])}", EXPORT_AGAIN) from error
    if dtype.itemsize * 8 != int(header["bitpix"]):
        found = f"says that a voxel is {dtype.name} and has {int(header['bitpix'])} bits"
        raise BadFileError(path, found, EXPORT_AGAIN)
    return dtype


def _offset(path: Path, header: nib.Nifti1Header) -> int:
    offset, least = float(header["vox_offset"]), int(header["sizeof_hdr"]) + 4
    if not least <= offset <= LARGEST_EXTENSION or offset != int(offset):
        raise BadFileError(path, f"says that its voxels begin at byte {offset:g}, not {least}", EXPORT_AGAIN)
    return int(offset)


def _scaling(path: Path, header: nib.Nifti1Header) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):  # either means: not scaled
        return 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        found = f"scales its voxels by {slope:g} and {intercept:g}"
        raise BadFileError(path, found, "set scl_slope to 1 and scl_inter to 0")
    return slope, intercept


def _affine(path: Path, header: nib.Nifti1Header) -> tuple[Float[np.ndarray, "4 4"], tuple[str, ...]]:
    spacing = np.array(header["pixdim"][1:4], dtype=float)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        said = "x".join(f"{each:g}" for each in spacing)
        raise BadFileError(path, f"has the spacing {said}", "write its spacing in millimetres (pixdim)")
    scale = MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    remarks = () if scale == 1 else (f"is not in millimetres; its lengths are taken times {scale:g}",)
    units = np.diag([scale, scale, scale, 1.0])
    if int(header["sform_code"]) > 0:
        return units @ np.asarray(header.get_sform(), dtype=float), remarks
    if int(header["qform_code"]) > 0:
        return units @ _qform(path, header), remarks
    said = "says nothing about its orientation (neither qform nor sform); read as LPS, as ITK does"
    return units @ np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]), (*remarks, said)


def _qform(path: Path, header: nib.Nifti1Header) -> Float[np.ndarray, "4 4"]:
    try:
        return np.asarray(header.get_qform(), dtype=float)
    except (HeaderDataError, ValueError) as error:
        raise BadFileError(path, f"has a qform that is no rotation ({error})", "write its orientation again") from error


def _contradictions(path: Path, header: nib.Nifti1Header, sizes: tuple[int, ...]) -> tuple[str, ...]:
    """Compare the sform, which is taken, with the qform and the spacing."""
    if int(header["sform_code"]) <= 0:
        return ()
    sform, spacing = np.asarray(header.get_sform(), dtype=float), np.array(header["pixdim"][1:4], dtype=float)
    if not np.isfinite(sform).all() or not np.linalg.det(sform):
        return ()  # refused by itself, right or not
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    rigid = int(header["sform_code"]) in SCANNER_OR_ALIGNED
    if rigid and not np.allclose(lengths, spacing, rtol=1e-2):
        said, other = ("x".join(f"{each:.4g}" for each in values) for values in (lengths, spacing))
        found = f"says two things about its spacing: {said} mm (sform) and {other} mm (pixdim)"
        raise BadFileError(path, found, "find out which is right and write both")
    if int(header["qform_code"]) <= 0:
        return ()
    qform = _qform(path, header)
    names = ["".join(nib.orientations.aff2axcodes(each)) for each in (sform, qform)]
    if rigid and int(header["sform_code"]) == int(header["qform_code"]) and names[0] != names[1]:
        found = f"says two things about its orientation: {names[0]} (sform) and {names[1]} (qform)"
        raise BadFileError(path, found, "find out which is right and write both")
    moved = displacement_voxels(sform, qform, (sizes[0], sizes[1], sizes[2]))[1]
    return (f"has a qform up to {moved:.3g} voxels away from its sform; the sform is taken",) if moved > 1 else ()
