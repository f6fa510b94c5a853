"""NRRD and the segmentations of 3D Slicer: the text header is read strictly, the geometry by ITK."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from lightning_atlas.data.cases import Mark
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

HEADER_BYTES = 2**23
"""A segment takes about 600 bytes."""
CODINGS: dict[str, Coding] = {
    "raw": "raw",
    **dict.fromkeys(("gzip", "gz"), "deflate"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
    **dict.fromkeys(("ascii", "text", "txt"), "text"),
}
TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("signed long long int",), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
ORIENTED = {"leftposteriorsuperior", "lps", "rightanteriorsuperior", "ras", "leftanteriorsuperior", "las"}
SPATIAL_KINDS = {"domain", "space", "???", "none"}


class Text(NamedTuple):
    """The header: its fields, the keys that programs add, and where it ends."""

    fields: dict[str, str]
    keys: dict[str, str]
    end: int


def open_nrrd(path: Path) -> Container:
    """Read the header of a `.nrrd`, a `.seg.nrrd` or a `.nhdr`.

    Raises:
        BadFileError: It is no such header, or contradicts the file.
    """
    text = read_text(path)
    fields = text.fields
    dtype, coding = _dtype(path, fields), _coding(path, fields)
    sizes = tuple(_whole_numbers(path, fields, "sizes"))
    if _whole_numbers(path, fields, "dimension") != [len(sizes)]:
        raise BadFileError(path, f"has the sizes {fields['sizes']}, but dimension {fields['dimension']}", EXPORT_AGAIN)
    channel_axis = _channel_axis(path, fields, sizes)
    data = _voxels_of(path, fields)
    start = text.end if data == path else 0
    skip = _skip(path, fields)
    count = math.prod(sizes)
    if skip < 0:  # the voxels are the last bytes of the file
        start, skip = max(start, data.stat().st_size - count * dtype.itemsize), 0
    if any(word in fields.get(field, "").lower() for word in ("nan", "inf") for field in ("spaceorigin", "spacings")):
        raise BadFileError(path, "has an origin or a spacing that is not finite", EXPORT_AGAIN)
    oriented = fields.get("space", "").replace("-", "").lower() in ORIENTED
    remarks = () if oriented else ("says nothing about its orientation (space); read as LPS, as ITK does",)
    header = make_header(path, sizes, channel_axis, affine_of(path, itk_header(path)), dtype, remarks)
    stored = voxel_stream(data, dtype, count, coding, start, skip)
    return Container(path, header, sizes, channel_axis, stored)


def nrrd_voxels(path: Path) -> Path:
    """Return the file that holds the voxels of a header; that may be its own."""
    return _voxels_of(path, read_text(path).fields)


def _voxels_of(path: Path, fields: dict[str, str]) -> Path:
    return beside(path, fields["datafile"]) if "datafile" in fields else path


def segments(path: Path) -> dict[str, Mark]:
    """Return name -> place of the segments of a `.seg.nrrd`, in their order, from its header alone.

    Raises:
        BadFileError: Two segments have one name, or one has a value or layer that is no number.
    """
    text = read_text(path)
    numbers = sorted({int(found[1]) for key in text.keys if (found := re.fullmatch(r"Segment(\d+)_(ID|Name)", key))})
    names = [text.keys.get(f"Segment{number}_Name", f"Segment_{number + 1}") for number in numbers]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        found = f"has several segments called {', '.join(map(repr, twice))}"
        raise BadFileError(path, found, "rename or merge them in 3D Slicer, so that each has a name of its own")
    layered = text.fields.get("dimension") == "4"
    try:
        return {
            name: Mark(
                path,
                int(text.keys.get(f"Segment{number}_LabelValue", 1)),
                int(text.keys.get(f"Segment{number}_Layer", number if layered else 0)),
            )  # Slicer before 4.11 gave each segment a layer of its own and named neither
            for number, name in zip(numbers, names, strict=True)
        }
    except ValueError as error:
        raise BadFileError(path, f"has a segment whose value or layer is no number ({error})", EXPORT_AGAIN) from error


def read_text(path: Path) -> Text:
    """Read the header, which ends with an empty line.

    Raises:
        BadFileError: It is none, or has no end.
    """
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    with path.open("rb") as stream:
        if not stream.readline(16).startswith(b"NRRD000"):
            raise BadFileError(path, "is no NRRD file inside", "copy it again, or rename it after what it is")
        while line := _line(path, stream):
            if line.startswith("#"):
                continue
            key, assigned, value = line.partition(":=")
            if assigned:
                keys[key] = value.replace("\\n", "\n").replace("\\\\", "\\")
                continue
            key, colon, value = line.partition(": ")
            name = key.replace(" ", "").lower()
            if not colon or name in fields:
                raise BadFileError(path, f"has a header line that cannot be right: {line[:60]!r}", EXPORT_AGAIN)
            fields[name] = value.strip()
        return Text(fields, keys, stream.tell())


def _line(path: Path, stream: BinaryIO) -> str:
    line = stream.readline(HEADER_BYTES)
    whole = line.endswith(b"\n") or (not line and path.name.lower().endswith(".nhdr"))
    if not whole or stream.tell() > HEADER_BYTES:
        raise BadFileError(path, "has a header without an end", COPY_AGAIN)
    return line.decode("utf-8", errors="replace").rstrip("\r\n")


def _field(path: Path, fields: dict[str, str], name: str) -> str:
    if name not in fields:
        raise BadFileError(path, f"has no {name} in its header", EXPORT_AGAIN)
    return fields[name]


def _whole_numbers(path: Path, fields: dict[str, str], name: str) -> list[int]:
    words = _field(path, fields, name).split()
    if not words or not all(re.fullmatch(r"\d{1,18}", word) for word in words):
        raise BadFileError(path, f"has the {name} {fields[name]!r}, which are no counts", EXPORT_AGAIN)
    return [int(word) for word in words]


def _skip(path: Path, fields: dict[str, str]) -> int:
    said = fields.get("byteskip", "0")
    if fields.get("lineskip", "0") != "0" or not re.fullmatch(r"-1|\d{1,9}", said):
        raise BadFileError(path, "skips lines, or bytes that are no count, before its voxels", EXPORT_AGAIN)
    return int(said)


def _dtype(path: Path, fields: dict[str, str]) -> np.dtype:
    name = _field(path, fields, "type").lower()
    if name not in TYPES:
        raise BadFileError(path, f"has voxels of type {name!r}", "save it with integers or real numbers, one a voxel")
    dtype = np.dtype(TYPES[name])
    if dtype.itemsize == 1 or CODINGS.get(fields.get("encoding", "").lower()) == "text":
        return dtype
    endian = _field(path, fields, "endian").lower()
    if endian not in ("little", "big"):
        raise BadFileError(path, f"has the endian {endian!r}", "write little or big")
    return dtype.newbyteorder("<" if endian == "little" else ">")


def _coding(path: Path, fields: dict[str, str]) -> Coding:
    name = _field(path, fields, "encoding").lower()
    if name not in CODINGS:
        raise BadFileError(path, f"is encoded as {name!r}", "save it with gzip or raw encoding")
    return CODINGS[name]


def _channel_axis(path: Path, fields: dict[str, str], sizes: tuple[int, ...]) -> int | None:
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(sizes)
    directions = re.findall(r"none|\([^)]*\)", fields.get("spacedirections", "")) or ["("] * len(sizes)
    if len(kinds) != len(sizes) or len(directions) != len(sizes):
        found = f"has {len(sizes)} axes, but kinds or space directions of another number"
        raise BadFileError(path, found, EXPORT_AGAIN)
    channels = [
        axis
        for axis, (kind, direction) in enumerate(zip(kinds, directions, strict=True))
        if kind not in SPATIAL_KINDS or direction == "none"
    ]
    if len(sizes) - len(channels) != 3 or len(channels) > 1:
        found = f"has {len(sizes) - len(channels)} axes in space and {len(channels)} others"
        raise BadFileError(path, found, "save it as one volume with three axes")
    return channels[0] if channels else None
