"""A case is a scan with its label file and what was drawn on it; a source lists cases."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import torch
import torchio as tio
from jaxtyping import Bool, Int8
from nibabel.filebasedimages import ImageFileError

from lightning_atlas.data.variation import Variation

Split = Literal["train", "val", "test", "predict"]
UNKNOWN, LEFT_OVER, FIRST_NAME = 0, 1, 2
"""Rows of a case's table: nobody decided; looked at, but none of the names; then the names, sorted by their values."""
GRID_TOLERANCE_MM = 1e-2


@dataclass(frozen=True)
class Case:
    """One scan, not yet read.

    Args:
        subject: Name of the subject; predictions are called by it.
        split: The part of the data that the subject belongs to.
        image: File of the scan.
        label: File of the labels, on the same grid; `None` when nobody drew.
        values: Name -> value in the label file. Structures are disjoint.
        modality: `CT`, `MR` or another short name.
        drawn: Names that somebody drew in this case; `None` means all.
        drawn_planes: Planes that somebody drew, counted upwards from 0 in the RAS grid; `None` means all.
        ignore_value: Value of voxels on which nobody decided.
        variation: Makes a simulated subject of the scan.
    """

    subject: str
    split: Split
    image: Path
    label: Path | None = None
    values: Mapping[str, int] = field(default_factory=dict)
    modality: str | None = None
    drawn: tuple[str, ...] | None = None
    drawn_planes: tuple[int, ...] | None = None
    ignore_value: int | None = None
    variation: Variation | None = None

    def __post_init__(self) -> None:
        if not self.subject or self.subject.startswith(".") or any(each in self.subject for each in '/\\:*?"<>|\n'):
            raise ValueError(f"{self.subject!r} cannot be a subject's name: files are called by it ({self.image})")
        if 0 in self.values.values() or len(set(self.values.values())) < len(self.values):
            raise ValueError(f"{self.subject}: each name needs a value of its own above 0, not {dict(self.values)}")
        if unknown := sorted(set(self.drawn or ()) - set(self.values)):
            raise ValueError(f"{self.subject}: drawn {', '.join(unknown)}, but the labels have {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The dataset's own names in the order of their values; none where nobody drew."""
        return () if self.label is None else tuple(sorted(self.values, key=lambda name: self.values[name]))

    def load(self) -> tio.Subject:
        """Read the scan as `image` (float32) and `label` (rows of the table) on the file's own grid.

        Raises:
            ValueError: A file is damaged or has several channels, the label lies on another grid than the image, or it
                has a value that no name has.
        """
        image = _read(tio.ScalarImage, self.image)
        if image.num_channels != 1:
            raise ValueError(f"{self.image} has {image.num_channels} channels; each scan is one channel so far")
        rows = torch.zeros(1, *image.spatial_shape, dtype=torch.uint8)
        if self.label is not None:
            drawing = _read(tio.LabelMap, self.label)
            self._check_grid(image, drawing)
            rows = torch.from_numpy(self._rows(drawing.numpy()))
        subject = tio.Subject(
            image=tio.ScalarImage(tensor=image.data.float(), affine=image.affine),
            label=tio.LabelMap(tensor=rows, affine=image.affine),
        )
        if self.variation is not None:
            subject = self.variation(subject)
        if self.drawn_planes is not None:
            label = subject.get_image("label")
            label.set_data(self._only_drawn_planes(label))
        return subject

    def table(self) -> tuple[Int8[np.ndarray, "rows names"], Bool[np.ndarray, "rows names"]]:
        """Return `states` and `drawn` (see `lightning_atlas.types`) in the dataset's own names."""
        names = self.names
        here = np.array([self.drawn is None or name in self.drawn for name in names], dtype=bool)
        states = np.full((FIRST_NAME + len(names), len(names)), -1, dtype=np.int8)
        states[LEFT_OVER:, here] = 0
        for column in np.flatnonzero(here):
            states[FIRST_NAME + column] = 0
            states[FIRST_NAME + column, column] = 1
        drawn = np.repeat(here[None], len(states), axis=0)
        drawn[UNKNOWN] = False
        return states, drawn

    def _check_grid(self, image: tio.Image, drawing: tio.Image) -> None:
        same = image.spatial_shape == drawing.spatial_shape
        if same and np.allclose(image.affine, drawing.affine, atol=GRID_TOLERANCE_MM):
            return
        raise ValueError(
            f"{self.subject}: image and label lie on different grids: {_grid(image)} and {_grid(drawing)} "
            f"({self.image}, {self.label}); put the label on the image's: torchio.Resample(IMAGE)(LABEL)"
        )

    def _rows(self, values: np.ndarray) -> np.ndarray:
        found, place = np.unique(values, return_inverse=True)
        rows = {0: LEFT_OVER} | {self.values[name]: FIRST_NAME + n for n, name in enumerate(self.names)}
        if self.ignore_value is not None:
            rows[self.ignore_value] = UNKNOWN
        if strange := [value.item() for value in found if value.item() not in rows]:
            more = f" and {len(strange) - 12} more" if len(strange) > 12 else ""
            raise ValueError(
                f"{self.label} has the values {strange[:12]}{more}, which no name has: name all of them in `values`, "
                "and choose with data.init_args.classes which to learn: {liver: [liver]}"
            )
        dtype = np.uint8 if FIRST_NAME + len(self.names) <= 256 else np.int16
        return np.array([rows[value.item()] for value in found], dtype=dtype)[place].reshape(values.shape)

    def _only_drawn_planes(self, label: tio.Image) -> torch.Tensor:
        axis, direction = superior_axis(label.affine)
        planes = label.spatial_shape[axis]
        if wrong := [plane for plane in self.drawn_planes or () if not 0 <= plane < planes]:
            raise ValueError(f"{self.subject}: drawn planes {wrong}, but {self.image} has planes 0 to {planes - 1}")
        kept = [plane if direction > 0 else planes - 1 - plane for plane in self.drawn_planes or ()]
        rows = torch.zeros_like(label.data)
        rows.movedim(1 + axis, 0)[kept] = label.data.movedim(1 + axis, 0)[kept]
        return rows


def _read(kind: type[tio.Image], path: Path) -> tio.Image:
    check_whole(path)
    image = kind(path)
    try:
        image.load()
    except RuntimeError as error:  # what ITK raises, whatever is wrong
        raise ValueError(f"{path} cannot be read as an image: {str(error).strip().splitlines()[-1]}") from error
    return image


def _grid(image: tio.Image) -> str:
    spacing, origin = ([round(float(each), 3) for each in values] for values in (image.spacing, image.origin))
    return f"shape {image.spatial_shape}, {''.join(image.orientation)}, spacing {spacing} mm, origin {origin}"


def check_whole(path: Path) -> None:
    """Read a NIfTI file to its end: ITK, through which TorchIO may read, fills what is missing with zeros.

    Raises:
        ValueError: It is cut off or damaged.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        return
    try:
        np.asanyarray(nib.loadsave.load(path).dataobj)  # pyright: ignore[reportAttributeAccessIssue]
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged or cut off: {reason}") from error


def superior_axis(affine: np.ndarray) -> tuple[int, int]:
    """Return the voxel axis that runs along the body, and 1 if upwards or -1 if downwards."""
    orientation = nib.orientations.io_orientation(affine)
    axis = int(np.flatnonzero(orientation[:, 0] == 2)[0])
    return axis, int(orientation[axis, 1])


class Source(ABC):
    """Lists the cases of a dataset; reads headers at most, never voxels."""

    modality: str | None = None

    @abstractmethod
    def cases(self) -> list[Case]:
        """Return every case in a fixed order."""

    @property
    @abstractmethod
    def description(self) -> str:
        """One line for reports: what the numbers were measured on."""
