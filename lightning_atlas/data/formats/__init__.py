"""Every format that scans come in: NIfTI, NRRD, MetaImage, DICOM series, PNG and JPEG; read whole or refused."""

from lightning_atlas.data.formats.container import BadFileError, Container, Header, displacement_voxels, one_grid
from lightning_atlas.data.formats.nrrd import segments
from lightning_atlas.data.formats.reading import (
    ENDINGS,
    finite,
    is_image,
    is_picture,
    open_container,
    read_header,
    read_image,
    read_labels,
    stem,
    whole_numbers,
)

__all__ = [
    "ENDINGS",
    "BadFileError",
    "Container",
    "Header",
    "displacement_voxels",
    "finite",
    "is_image",
    "is_picture",
    "one_grid",
    "open_container",
    "read_header",
    "read_image",
    "read_labels",
    "segments",
    "stem",
    "whole_numbers",
]
