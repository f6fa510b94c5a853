"""Every format that scans come in: NIfTI, NRRD, MetaImage, DICOM series, PNG and JPEG; read whole or refused."""

from lightning_atlas.data.formats.container import BadFileError, Container, Header, displacement_voxels, one_grid
from lightning_atlas.data.formats.nrrd import segments
from lightning_atlas.data.formats.reading import (
    DETACHED,
    ENDINGS,
    Watch,
    finite,
    is_image,
    is_picture,
    open_container,
    parts,
    read_header,
    read_image,
    read_labels,
    stem,
    whole_numbers,
)

__all__ = [
    "DETACHED",
    "ENDINGS",
    "BadFileError",
    "Container",
    "Header",
    "Watch",
    "displacement_voxels",
    "finite",
    "is_image",
    "is_picture",
    "one_grid",
    "open_container",
    "parts",
    "read_header",
    "read_image",
    "read_labels",
    "segments",
    "stem",
    "whole_numbers",
]
