"""A case is a scan with its label file and what was drawn on it; a source lists cases."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning_atlas.data.slab import Slab
from lightning_atlas.data.variation import Variation

Split = Literal["train", "val", "test", "predict"]
UNKNOWN = 0
"""The row of a case's table that means: nobody decided on anything here."""


class Mark:
    """Where one structure is drawn: voxels of a file.

    The file is kept as text, which takes a quarter of a `Path`: atlases have hundreds of thousands of masks.

    Args:
        file: A label map, a mask, or a `.seg.nrrd`.
        value: Value of its voxels; `None` means every value above 0.
        layer: Channel of the file; structures in one layer exclude each other.
        folder: Where a relative path starts, if not here.
    """

    __slots__ = ("_file", "_folder", "layer", "value")

    def __init__(self, file: Path | str, value: int | None = None, layer: int = 0, folder: str = "") -> None:
        self._file, self._folder = str(file), folder
        self.value, self.layer = value, layer

    @property
    def path(self) -> str:
        """The file's path as text."""
        return os.path.join(self._folder, self._file)  # noqa: PTH118 - a `Path` would be made for each mask

    @property
    def file(self) -> Path:
        """The file."""
        return Path(self._folder, self._file)

    def __eq__(self, other: object) -> bool:
        told = (self.path, self.value, self.layer)
        return isinstance(other, Mark) and told == (other.path, other.value, other.layer)

    def __hash__(self) -> int:
        return hash((self.path, self.value, self.layer))

    def __repr__(self) -> str:
        return f"Mark({self.path!r}, {self.value}, {self.layer})"


@dataclass(frozen=True)
class DrawnOn:
    """Where somebody decided; all that is given must hold. Elsewhere nothing is known.

    Args:
        planes: Planes that were drawn, counted from 0 towards the positive end of the axis in RAS.
        every: Every n-th plane was drawn, from plane 0.
        labelled: A plane that holds any label was drawn whole, the others were not.
        segment: Name of a structure that is no structure but the region in which somebody drew.
        mask: File on the image's grid, above 0 where somebody decided (a slice mask, scribbles).
        axis: Axis across the planes: `i` left to right, `j` back to front, `k` upwards.
        names: Structures of which this is said; `None` means all.
    """

    planes: tuple[int, ...] | None = None
    every: int | None = None
    labelled: bool = False
    segment: str | None = None
    mask: Path | None = None
    axis: Literal["i", "j", "k"] = "k"
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"drawn_on: every is {self.every}; it counts planes, from 1")
        if not (self.planes or self.every or self.labelled or self.segment or self.mask):
            raise ValueError("drawn_on says nowhere: give planes, every, labelled, segment or mask")


@dataclass(frozen=True)
class Case:
    """One scan, not yet read.

    Args:
        subject: Name of the subject; predictions are called by it.
        split: The part of the data that the subject belongs to.
        image: File of the scan, or a file for each channel.
        label: File of labels that exclude each other; `None` when nobody drew one.
        values: Name -> value in the label file.
        modality: `CT`, `MR` or another short name.
        drawn: Names that somebody drew in this case; `None` means all.
        ignore_value: Value of voxels on which nobody decided.
        masks: Name -> where it is drawn, for masks in files of their own and for segments; these may overlap.
        drawn_on: Where somebody drew; empty means everywhere.
        patient: Whose scan it is; the subject by default.
        dataset: Of which dataset it is, for mixing datasets and for tables of results.
        vocabulary: What the names mean: a built-in vocabulary or a file; `None` takes each name as anatomy has it.
        target: Class (by number) or value of the whole scan, or name -> label or value.
        boxes: Boxes in voxels (i0, j0, k0, i1, j1, k1, class by number).
        variation: Makes a simulated subject of the scan.
        fold: Of its patient, where the dataset's authors published folds; from 0.
        slab: Reads a few planes about the image, which is a numbered picture of one plane.
    """

    subject: str
    split: Split
    image: Path | Mapping[str, Path]
    label: Path | None = None
    values: Mapping[str, int] = field(default_factory=dict)
    modality: str | None = None
    drawn: tuple[str, ...] | None = None
    ignore_value: int | None = None
    masks: Mapping[str, Mark] = field(default_factory=dict)
    drawn_on: tuple[DrawnOn, ...] = ()
    patient: str | None = None
    dataset: str = ""
    vocabulary: str | None = None
    target: int | float | Mapping[str, Any] | None = None
    boxes: tuple[tuple[float, ...], ...] = ()
    variation: Variation | None = None
    fold: int | None = None
    slab: Slab | None = None

    def __post_init__(self) -> None:
        if not self.subject or self.subject.startswith(".") or any(each in self.subject for each in '/\\:*?"<>|\n'):
            raise ValueError(f"{self.subject!r} cannot be a subject's name: files are called by it ({self.image})")
        if 0 in self.values.values() or len(set(self.values.values())) < len(self.values):
            raise ValueError(f"{self.subject}: each name needs a value of its own above 0, not {dict(self.values)}")
        if twice := sorted(set(self.values) & set(self.masks)):
            raise ValueError(f"{self.subject}: {', '.join(twice)} is drawn in the label map and again in a mask")
        if unknown := sorted(set(self.drawn or ()) - set(self.names)):
            raise ValueError(f"{self.subject}: drawn {', '.join(unknown)}, but the labels have {', '.join(self.names)}")

    @property
    def channels(self) -> dict[str, Path]:
        """Channel -> file; the only channel of a scan in one file is called `image`."""
        return dict(self.image) if isinstance(self.image, Mapping) else {"image": self.image}

    @property
    def marks(self) -> dict[str, Mark]:
        """Name -> where it is drawn: the label map's in the order of their values, then the masks."""
        values = {} if self.label is None else self.values
        mapped = {name: Mark(self.label, values[name]) for name in sorted(values, key=values.__getitem__) if self.label}
        return {**mapped, **self.masks}

    @property
    def names(self) -> tuple[str, ...]:
        """The dataset's own names in the order of `marks`; a region in which somebody drew is none of them."""
        regions = {place.segment for place in self.drawn_on}
        return tuple(name for name in self.marks if name not in regions)


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
