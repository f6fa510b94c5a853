"""PNG and JPEG as images of one plane: columns are i, rows are j, nothing is flipped."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import ExifTags, Image, ImageOps

from lightning_atlas.data.formats.container import COPY_AGAIN, BadFileError, Container, make_header

DEEP = {"I;16": "u2", "I;16B": ">u2", "I;16L": "<u2", "I": "i4", "F": "f4"}
"""Grey values that do not fit into 8 bits keep their one channel."""
INDICES = {"1": "u1", "L": "u1", "P": "u1", **DEEP}
SIDEWAYS = (5, 6, 7, 8)
"""Values of the EXIF orientation that exchange rows and columns (CIPA DC-008, tag 0x0112)."""
TURNING = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""What Pillow calls the places of a header from which it takes the orientation: EXIF, XMP, EXIF as text in a PNG."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def open_picture(path: Path, labels: bool) -> Container:
    """Read the header of a PNG or JPEG; colours become three channels, unless its values are labels.

    Raises:
        BadFileError: It is none, or its colours are to be labels.
    """
    with _opened(path) as picture:
        if labels and picture.mode not in INDICES:
            found = f"holds colours ({picture.mode}), not label values"
            raise BadFileError(path, found, "save it as a grey or palette PNG whose values are the labels")
        kinds = INDICES if labels else DEEP
        channels, dtype = (1, kinds[picture.mode]) if picture.mode in kinds else (3, "u1")
        rows_first = _orientation(picture) in SIDEWAYS
        i, j = picture.size[::-1] if rows_first else picture.size
    sizes = (channels, i, j, 1)
    header = make_header(path, sizes, 0, LPS, np.dtype(dtype))
    return Container(path, header, sizes, 0, partial(_pixels, path, labels))


def picture_size(path: Path) -> tuple[int, int]:
    """Read from the header of a PNG or JPEG how many columns and rows it has, upright.

    Raises:
        BadFileError: It is none.
    """
    with _opened(path) as picture:
        i, j = picture.size[::-1] if _orientation(picture) in SIDEWAYS else picture.size
    return i, j


def read_colours(path: Path) -> Shaped[np.ndarray, "rows columns 3"]:
    """Read a PNG or JPEG, upright and in red, green and blue: of grey, palette, transparency and print colours too.

    Raises:
        BadFileError: It is none, it is damaged, or its grey values are more than 256.
    """
    with _opened(path) as picture:
        if picture.mode in DEEP:
            found = f"has grey values of more than 8 bits ({picture.mode}), not colours"
            raise BadFileError(path, found, "read it by a ScanDataModule, or save it with 8 bits")
        upright = ImageOps.exif_transpose(picture) if _orientation(picture) > 1 else picture
        return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _pixels(path: Path, labels: bool) -> Iterator[np.ndarray]:
    with _opened(path) as picture:
        picture.verify()  # the checksums; afterwards it has to be opened anew
    with _opened(path) as picture:
        upright = ImageOps.exif_transpose(picture) if _orientation(picture) > 1 else picture
        plain = upright if upright.mode in (INDICES if labels else DEEP) else upright.convert("RGB")
        pixels = np.asarray(plain)
    yield pixels.astype(np.uint8).ravel() if pixels.dtype == bool else pixels.ravel()


def _orientation(picture: Image.Image) -> int:
    """Return the orientation by the header, from 1 (upright) to 8; what is no such number turns nothing."""
    if picture.info.keys().isdisjoint(TURNING):
        return 1
    try:
        told = Image.Image.getexif(picture).get(ExifTags.Base.Orientation)  # that of PNG would decode the picture
    except (SyntaxError, ValueError, struct.error):  # of the tags; the pixels may be sound
        return 1
    return told if isinstance(told, int) and told in range(1, 9) else 1


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as picture:
            yield picture
    except BadFileError:
        raise
    except Image.DecompressionBombError as error:
        raise BadFileError(path, f"is too large to be a picture ({error})", "make it smaller") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadFileError(path, f"is damaged or no PNG or JPEG ({reason})", COPY_AGAIN) from error
