"""Voxels as a stream that is read to the end.

Neither ITK nor nibabel can tell whether a file is whole: ITK fills what is missing with zeros, nibabel stops before the
checksum. So the voxels of NIfTI, NRRD and MetaImage are read here, a chunk at a time.
"""

import bz2
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from lightning_atlas.data.formats.container import COPY_AGAIN, BadFileError, Voxels

CHUNK_BYTES = 2**20
DEFLATE_RATIO = 1032
"""No deflate stream grows by more (zlib.net/zlib_tech.html)."""
LONGEST_NUMBER = 32
"""Characters of a number in a text, with what separates it from the next."""

Coding = Literal["raw", "deflate", "bzip2", "text"]


def first_bytes(file: Path, number: int, coding: Coding) -> bytes:
    """Return the beginning of a file, decoded; less where it ends before."""
    with _named(file), file.open("rb") as stream:
        found = b""
        for piece in _decoded(stream, coding):
            found += piece[: number - len(found)]
            if len(found) == number:
                break
    return found


def voxel_stream(
    file: Path, dtype: np.dtype, count: int, coding: Coding, start: int = 0, skip: int = 0
) -> Callable[[], Iterator[Voxels]]:
    """Return what starts a stream of a file's voxels; it sees to it that they are all there, and nothing else.

    Args:
        file: The file that holds them.
        dtype: How a voxel is stored.
        count: How many there are.
        coding: How the bytes from `start` are coded.
        start: First byte of the coded stream.
        skip: Decoded bytes before the first voxel.

    Raises:
        BadFileError: By its size alone the file cannot hold them.
    """
    room, needed = max(0, file.stat().st_size - start), count * dtype.itemsize
    if coding == "raw" and room < needed + skip:
        raise _cut_off(file, f"{max(0, room - skip)} bytes of voxels", needed)
    if coding == "deflate" and room * DEFLATE_RATIO < needed:
        raise _cut_off(file, f"{room} compressed bytes", needed)
    return partial(_stored, file, dtype, count, coding, start, skip)


def _stored(file: Path, dtype: np.dtype, count: int, coding: Coding, start: int, skip: int) -> Iterator[Voxels]:
    with _named(file), file.open("rb") as stream:
        stream.seek(start)
        if coding == "text":
            yield _numbers(file, stream, dtype, count)
        else:
            yield from _whole(file, _decoded(stream, coding), dtype, count, skip)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadFileError(file, f"is damaged or cut off ({reason})", COPY_AGAIN) from error


def _whole(file: Path, pieces: Iterator[bytes], dtype: np.dtype, count: int, skip: int) -> Iterator[Voxels]:
    declared, seen, rest = count * dtype.itemsize, -skip, b""
    for piece in pieces:
        before, seen = seen, seen + len(piece)
        if seen > declared:
            remedy = "its header is wrong, or something was appended: export it again"
            raise BadFileError(file, f"holds more than the {declared} bytes of voxels that its header declares", remedy)
        rest += piece[max(0, -before) :]
        voxels = len(rest) // dtype.itemsize
        if voxels:
            yield np.frombuffer(rest, dtype, voxels)
            rest = rest[voxels * dtype.itemsize :]
    if seen < declared:
        raise _cut_off(file, f"{max(0, seen)} bytes of voxels", declared)


def _cut_off(file: Path, held: str, declared: int) -> BadFileError:
    found = f"is cut off: it holds {held}, its header declares {declared}"
    return BadFileError(file, found, COPY_AGAIN)


def _decoded(stream: BinaryIO, coding: Coding) -> Iterator[bytes]:
    if coding == "deflate":
        return _inflated(stream)
    source = bz2.BZ2File(stream) if coding == "bzip2" else stream
    return iter(partial(source.read, CHUNK_BYTES), b"")


def _inflated(stream: BinaryIO) -> Iterator[bytes]:
    """Inflate zlib or gzip, of several members too, with the checksums, never more than a chunk at a time."""
    engine, given = zlib.decompressobj(wbits=47), b""  # 47: either container, told by its first bytes
    while given := given or stream.read(CHUNK_BYTES):
        if engine.eof:
            given = given.lstrip(b"\0")  # gzip allows zeros behind the last member
            engine = zlib.decompressobj(wbits=47) if given else engine
            continue
        yield engine.decompress(given, CHUNK_BYTES)
        given = engine.unused_data if engine.eof else engine.unconsumed_tail
    if not engine.eof:
        yield engine.flush()
    if not engine.eof:
        raise EOFError("the compressed stream has no end")


def _numbers(file: Path, stream: BinaryIO, dtype: np.dtype, count: int) -> Voxels:
    words = stream.read(count * LONGEST_NUMBER).split()
    if len(words) != count:
        raise _cut_off(file, f"{len(words)} numbers", count)
    try:
        return np.array(words).astype(dtype)
    except ValueError as error:
        raise BadFileError(file, "holds text that is no number", "save it with gzip or raw encoding") from error
