"""MetaImage: the text header is read strictly, the geometry by ITK."""

import math
from pathlib import Path

import numpy as np

from lightning_atlas.data.formats.container import (
    COPY_AGAIN,
    EXPORT_AGAIN,
    BadFileError,
    Container,
    beside,
    make_header,
)
from lightning_atlas.data.formats.geometry import affine_of, itk_header
from lightning_atlas.data.formats.stream import Coding, voxel_stream

HEADER_BYTES = 2**16
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""Sizes as MetaIO has them: its long has four bytes."""
GEOMETRY = (
    *("ElementSpacing", "ElementSize", "Offset", "Origin", "Position"),
    *("TransformMatrix", "Rotation", "Orientation"),
)


def open_metaimage(path: Path) -> Container:
    """Read the header of a `.mha` or `.mhd`.

    Raises:
        BadFileError: It is no such header, or contradicts the file.
    """
    fields, end = _read_text(path)
    dtype = _dtype(path, fields)
    volume, channels = _counts(path, fields, "DimSize"), _counts(path, fields, "ElementNumberOfChannels", "1")
    if len(channels) != 1 or _counts(path, fields, "NDims") != [len(volume)]:
        raise BadFileError(path, "has a DimSize and an NDims that do not fit each other", EXPORT_AGAIN)
    sizes, channel_axis = (tuple(volume), None) if channels == [1] else ((channels[0], *volume), 0)
    data = _voxels_of(path, fields)
    numbers = {name: fields[name].lower() for name in GEOMETRY if name in fields}
    if wrong := [name for name, said in numbers.items() if "nan" in said or "inf" in said]:
        raise BadFileError(path, f"has a {wrong[0]} that is not finite", EXPORT_AGAIN)
    header = make_header(path, sizes, channel_axis, affine_of(path, itk_header(path)), dtype)
    start, coding, count = end if data == path else 0, _coding(path, fields), math.prod(sizes)
    skipped = fields.get("HeaderSize", "0")
    if skipped == "-1":  # the voxels are the last bytes of the file
        start = max(start, data.stat().st_size - count * dtype.itemsize)
    elif skipped.isdecimal():
        start += int(skipped)
    else:
        raise BadFileError(path, f"has the HeaderSize {skipped!r}", EXPORT_AGAIN)
    _check_compressed_size(fields, data, start)
    return Container(path, header, sizes, channel_axis, voxel_stream(data, dtype, count, coding, start))


def metaimage_voxels(path: Path) -> Path:
    """Return the file that holds the voxels of a header; that may be its own."""
    return _voxels_of(path, _read_text(path)[0])


def _voxels_of(path: Path, fields: dict[str, str]) -> Path:
    named = fields["ElementDataFile"]
    return path if named.lower() == "local" else beside(path, named)


def _read_text(path: Path) -> tuple[dict[str, str], int]:
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while "ElementDataFile" not in fields:
            line = stream.readline(HEADER_BYTES)
            key, equals, value = line.decode("utf-8", errors="replace").partition("=")
            if stream.tell() > HEADER_BYTES or (line.strip() and not equals) or not line:
                raise BadFileError(path, "is no MetaImage inside, or has a header without an end", "copy it again")
            fields[key.strip()] = value.strip()
        return fields, stream.tell()


def _counts(path: Path, fields: dict[str, str], name: str, default: str = "") -> list[int]:
    words = fields.get(name, default).split()
    if not words or not all(word.isdecimal() and len(word) <= 18 for word in words):
        raise BadFileError(path, f"has the {name} {fields.get(name, '')!r}, which are no counts", EXPORT_AGAIN)
    return [int(word) for word in words]


def _true(fields: dict[str, str], *names: str) -> bool:
    return any(fields.get(name, "False").lower() in ("true", "1") for name in names)


def _dtype(path: Path, fields: dict[str, str]) -> np.dtype:
    name = fields.get("ElementType", "")
    if name not in TYPES:
        raise BadFileError(path, f"has voxels of type {name!r}", "save it with integers or real numbers, one a voxel")
    big = _true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return np.dtype(TYPES[name]).newbyteorder(">" if big else "<")


def _coding(path: Path, fields: dict[str, str]) -> Coding:
    if not _true({"BinaryData": "True", **fields}, "BinaryData"):
        return "text"
    return "deflate" if _true(fields, "CompressedData") else "raw"


def _check_compressed_size(fields: dict[str, str], data: Path, start: int) -> None:
    declared, held = fields.get("CompressedDataSize", ""), data.stat().st_size - start
    if _true(fields, "CompressedData") and declared.isdecimal() and int(declared) != held:
        found = f"is cut off or has more behind it: {held} compressed bytes, its header declares {declared}"
        raise BadFileError(data, found, COPY_AGAIN)
