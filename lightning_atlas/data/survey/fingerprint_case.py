"""What one scan is like: its grid, its intensities, and what somebody drew on it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import nibabel as nib
import numpy as np
import torchio as tio
from jaxtyping import Bool, Float, Integer, UInt8

from lightning_atlas.data.cases import Case
from lightning_atlas.data.labels.drawing import Drawing, drawn_planes, rows_on_planes
from lightning_atlas.data.labels.grids import Axis, along
from lightning_atlas.data.store.reading import read_case

LEVELS = (0, 0.5, 1, 5, 25, 50, 75, 95, 99, 99.5, 100)
"""Percentiles that are kept; the first and the last are the least and the largest of the sample."""
SAMPLE = 100_000
"""Voxels of a scan, and of its structures, by which intensities are measured."""
BINS = 48
PICTURE_SIDE = 256
CT_WINDOW = (-200.0, 300.0)
"""Hounsfield units from black to white: soft tissue."""

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Intensities:
    """Distribution of a sample of voxels.

    Args:
        percentiles: At `LEVELS`.
        mean: Mean.
        std: Standard deviation.
    """

    percentiles: tuple[float, ...]
    mean: float
    std: float

    def share_outside(self, low: float, high: float) -> float:
        """Return the share of voxels below `low` or above `high`, interpolated between the percentiles."""
        below, up_to = np.interp((low, high), self.percentiles, LEVELS, left=0.0, right=100.0)
        return float(below + 100 - up_to) / 100


@dataclass(frozen=True)
class Channel:
    """One channel of a scan.

    Args:
        everywhere: Intensities of the whole scan.
        inside: Intensities in the structures; `None` where there is none.
        histogram: Shares of the voxels in equal bins from the second to the last but one of `LEVELS`.
    """

    everywhere: Intensities
    inside: Intensities | None
    histogram: tuple[float, ...]


@dataclass(frozen=True)
class Structure:
    """What somebody drew of one structure in one scan.

    Args:
        volume_ml: 0 where it was looked for and is not there.
        drawn_planes: Planes on which somebody decided on it.
        thinnest_voxels: Least side of its bounding box in voxels.
        thinnest_mm: Least side of its bounding box in millimetres.
    """

    volume_ml: float
    drawn_planes: int
    thinnest_voxels: int
    thinnest_mm: float


@dataclass(frozen=True)
class Picture:
    """An axial slice as radiologists see it: rows run to the front, columns to the patient's left.

    Args:
        image: From dark to bright.
        structures: Number of the structure from 1; 0 where there is none.
        names: The structures.
        spacing_mm: Between rows, and between columns.
    """

    image: UInt8[np.ndarray, "rows columns"]
    structures: Integer[np.ndarray, "rows columns"]
    names: tuple[str, ...]
    spacing_mm: tuple[float, float]


@dataclass(frozen=True)
class CaseFingerprint:
    """What one scan is like; its axes i, j, k run to the right, to the front and upwards, however the file is stored.

    Args:
        subject: Whose scan it is called.
        split: The part of the data that it belongs to.
        patient: Whose scan it is.
        dataset: Of which dataset it is.
        modality: `CT`, `MR` or another short name.
        vocabulary: What the names mean.
        shape: Voxels along i, j, k.
        spacing_mm: Size of a voxel along i, j, k.
        orientation: Axis codes of the file as it is stored.
        channels: Channel -> its intensities.
        drawn_axis: Axis across the planes that are counted.
        planes: How many there are.
        structures: Name -> what was drawn, for the names on which somebody decided.
        overlaps: Pairs of names that share voxels.
        notes: What was unusual about the files.
        picture: For the sheet; it is not written.
    """

    subject: str
    split: str
    patient: str
    dataset: str
    modality: str | None
    vocabulary: str | None
    shape: tuple[int, int, int]
    spacing_mm: Triple
    orientation: str
    channels: dict[str, Channel]
    drawn_axis: Axis
    planes: int
    structures: dict[str, Structure]
    overlaps: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    picture: Picture | None = field(default=None, compare=False, repr=False)

    @property
    def extent_mm(self) -> Triple:
        """Field of view along i, j, k."""
        i, j, k = (side * spacing for side, spacing in zip(self.shape, self.spacing_mm, strict=True))
        return i, j, k

    @property
    def middle(self) -> Intensities:
        """Intensities of the first channel: in the structures where there are some, else everywhere."""
        first = next(iter(self.channels.values()))
        return first.inside or first.everywhere

    def to_dict(self) -> dict[str, Any]:
        """Return all but the picture as plain data."""
        told = asdict(replace(self, picture=None))
        del told["picture"]
        return told

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CaseFingerprint":
        """Read what `to_dict` wrote."""
        told = {key: _tuples(value) for key, value in values.items()}
        told["structures"] = {name: Structure(**each) for name, each in values["structures"].items()}
        told["channels"] = {name: _read_channel(each) for name, each in values["channels"].items()}
        return cls(**told)


def measure(case: Case, picture: bool = False) -> CaseFingerprint:
    """Read one scan and measure it.

    Args:
        case: To measure.
        picture: Keep a middle slice.

    Raises:
        ValueError: A file cannot be read.
    """
    subject, drawing = read_case(case)
    return measured(case, subject, drawing, picture)


def measured(case: Case, subject: tio.Subject, drawing: Drawing, picture: bool) -> CaseFingerprint:
    """Measure a scan that was read.

    Args:
        case: To measure.
        subject: Its image, as read.
        drawing: What was drawn on it, as read.
        picture: Keep a middle slice.
    """
    image = subject.get_image("image").numpy()
    orientation = nib.orientations.io_orientation(drawing.affine)
    order = np.argsort(orientation[:, 0])
    shape = tuple(image.shape[1 + axis] for axis in order)
    spacing = tuple(float(np.linalg.norm(drawing.affine[:3, axis])) for axis in order)
    axis = case.drawn_on[0].axis if case.drawn_on else "k"
    inside = (drawing.states == 1).any(axis=1)[drawing.rows]
    names = list(case.channels)
    names = names if len(names) == len(image) else [f"{names[0]} {number}" for number in range(len(image))]
    return CaseFingerprint(
        subject=case.subject,
        split=case.split,
        patient=case.patient or case.subject,
        dataset=case.dataset,
        modality=case.modality,
        vocabulary=case.vocabulary,
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        orientation="".join(nib.orientations.aff2axcodes(drawing.affine)),
        channels={name: _channel_of(volume, inside) for name, volume in zip(names, image, strict=True)},
        drawn_axis=axis,
        planes=drawing.rows.shape[along(drawing.affine, axis)[0]],
        structures=_structures(drawing, axis),
        overlaps=_overlaps(drawing),
        notes=drawing.notes,
        picture=_picture(image[0], drawing, orientation, spacing, case.modality) if picture else None,
    )


def _channel_of(volume: Float[np.ndarray, "i j k"], inside: Bool[np.ndarray, "i j k"]) -> Channel:
    random = np.random.default_rng(0)
    size = volume.size
    voxels = random.integers(size, size=SAMPLE) if size > SAMPLE else np.arange(size)
    drawn = np.flatnonzero(inside)
    if len(drawn) > SAMPLE:
        drawn = drawn[random.integers(len(drawn), size=SAMPLE)]
    values = volume[np.unravel_index(voxels, volume.shape)]
    everywhere = _distribution(values)
    low, high = everywhere.percentiles[1], everywhere.percentiles[-2]
    counts, _ = np.histogram(values, bins=BINS, range=(low, high if high > low else low + 1))
    shares = tuple(round(float(each) / len(values), 6) for each in counts)
    structures = volume[np.unravel_index(drawn, volume.shape)]
    return Channel(everywhere, _distribution(structures) if len(drawn) else None, shares)


def _distribution(values: Float[np.ndarray, " voxels"]) -> Intensities:
    values = values.astype(np.float64)
    percentiles = tuple(round(float(each), 6) for each in np.percentile(values, LEVELS))
    return Intensities(percentiles, float(values.mean()), float(values.std()))


def _structures(drawing: Drawing, axis: Axis) -> dict[str, Structure]:
    on_planes = [rows_on_planes(drawing, axis) for axis in range(3)]
    counts = on_planes[0].sum(axis=0)
    spacing = np.linalg.norm(drawing.affine[:3, :3], axis=0)
    voxel_ml = float(abs(np.linalg.det(drawing.affine[:3, :3]))) / 1000
    found = {}
    for column, (name, planes) in enumerate(drawn_planes(drawing, axis).items()):
        member = drawing.states[:, column] == 1
        spans = [np.flatnonzero(each[:, member].any(axis=1)) for each in on_planes]
        sides = np.array([span[-1] - span[0] + 1 if len(span) else 0 for span in spans])
        volume = float(counts[member].sum() * voxel_ml)
        if planes:
            found[name] = Structure(volume, planes, int(sides.min()), float((sides * spacing).min()))
    return found


def _overlaps(drawing: Drawing) -> tuple[tuple[str, str], ...]:
    rows = drawing.states[1:] == 1
    shared = (rows.T.astype(np.int64) @ rows.astype(np.int64)) > 0
    pairs = combinations(range(len(drawing.names)), 2)
    return tuple((drawing.names[one], drawing.names[other]) for one, other in pairs if shared[one, other])


def _picture(
    volume: Float[np.ndarray, "i j k"],
    drawing: Drawing,
    orientation: np.ndarray,
    spacing_mm: Sequence[float],
    modality: str | None,
) -> Picture:
    canonical = nib.orientations.apply_orientation(volume, orientation)
    rows = nib.orientations.apply_orientation(drawing.rows, orientation)
    numbers = np.array([max(np.flatnonzero(states == 1) + 1, default=0) for states in drawing.states])
    labelled = (numbers > 0)[rows].sum(axis=(0, 1))
    plane = int(np.argmax(labelled)) if labelled.any() else canonical.shape[2] // 2
    step = -(-max(canonical.shape[:2]) // PICTURE_SIDE)
    shown = canonical[::-step, ::step, plane].T.astype(np.float64)
    low, high = CT_WINDOW if modality == "CT" else np.percentile(shown, (1, 99.5))
    grey = np.clip((shown - low) / max(high - low, 1e-6), 0, 1) * 255
    structures = numbers[rows[::-step, ::step, plane].T].astype(np.int16)
    return Picture(grey.astype(np.uint8), structures, drawing.names, (spacing_mm[1] * step, spacing_mm[0] * step))


def _read_channel(values: Mapping[str, Any]) -> Channel:
    inside = None if values["inside"] is None else _read_intensities(values["inside"])
    return Channel(_read_intensities(values["everywhere"]), inside, tuple(values["histogram"]))


def _read_intensities(values: Mapping[str, Any]) -> Intensities:
    return Intensities(tuple(values["percentiles"]), values["mean"], values["std"])


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
