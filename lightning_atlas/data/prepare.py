"""Read each case once, apply the deterministic transforms, and keep the result as memory-mapped files.

A store is a folder named after a hash of all that made it: the files' content, the case, each transform's settings.
It is written aside and renamed, so that a killed run leaves no half store and two runs may write the same one.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
from jaxtyping import Integer
from torchio.transforms import Transform

from lightning_atlas.data.cases import FIRST_NAME, UNKNOWN, Case, superior_axis

STORE_VERSION = 2
PLACES_PER_ROW = 2000
"""Voxels of each name that are remembered, for patches to be centred on."""
HALF_PRECISION_LIMIT = 8.0
"""Intensities up to this are kept in 16 bits: the step there is 1/256, in [-1, 1] it is 1/2048."""


@dataclass(frozen=True)
class Prepared:
    """A case in the network's geometry, on disk.

    Args:
        folder: Holds `image.npy` (channels i j k), `label.npy` (i j k), `places.npy` and `meta.json`.
        shape: Voxels along i, j, k.
        affine: From voxels to millimetres (RAS).
        file_shape: Voxels of the original file.
        file_affine: Affine of the original file.
        planes: Planes along k with an observed voxel.
        counts: Number of voxels of each row.
        starts: Where the places of each row begin in `places.npy`, and the end.
        minimum: The image's minimum, with which patches are padded.
    """

    folder: Path
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    file_shape: tuple[int, int, int]
    file_affine: tuple[tuple[float, ...], ...]
    planes: tuple[int, ...]
    counts: tuple[int, ...]
    starts: tuple[int, ...]
    minimum: float

    def image(self) -> np.ndarray:
        """Return the image as a memory map (channels i j k)."""
        return np.load(self.folder / "image.npy", mmap_mode="r")

    def label(self) -> np.ndarray:
        """Return the rows as a memory map (i j k)."""
        return np.load(self.folder / "label.npy", mmap_mode="r")

    def places(self, row: int) -> Integer[np.ndarray, "places 3"]:
        """Return some voxels of a row."""
        return np.load(self.folder / "places.npy", mmap_mode="r")[self.starts[row] : self.starts[row + 1]]


def prepare(case: Case, transforms: Sequence[Transform]) -> tuple[Prepared, bool]:
    """Return the case in the network's geometry, and whether it had to be made now."""
    folder = store_root() / store_key(case, transforms)
    if (folder / "meta.json").is_file():
        return _open(folder), False
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    aside.mkdir()
    try:
        _write(aside, case, transforms)
        _rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return _open(folder), True


def store_root() -> Path:
    """Return the folder of all stores: `LIGHTNING_ATLAS_CACHE`, or one in the user's cache folder."""
    if chosen := os.environ.get("LIGHTNING_ATLAS_CACHE"):
        return Path(chosen) / "prepared"
    caches = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "lightning_atlas" / "prepared"


def store_key(case: Case, transforms: Sequence[Transform]) -> str:
    """Return a hash of all that a store is made of; names of folders and subjects are not among it."""
    made_of = {
        "version": [STORE_VERSION, tio.__version__],
        "image": file_hash(case.image),
        "label": None if case.label is None else file_hash(case.label),
        "values": sorted(case.values.values()),
        "ignore_value": case.ignore_value,
        "drawn_planes": case.drawn_planes,
        "variation": None if case.variation is None else asdict(case.variation),
        "transforms": [settings(transform) for transform in transforms],
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content; within a process a file of unchanged size and time is read once."""
    status = path.stat()
    return _file_hash(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _file_hash(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings(value: Any) -> Any:
    """Return a transform and all its attributes as plain data.

    Raises:
        ValueError: It holds a function without a name, of which nobody can say whether it changed.
    """
    if isinstance(value, Path | str):
        return file_hash(Path(value)) if Path(value).suffix and Path(value).is_file() else str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Transform):
        return [type(value).__module__, type(value).__qualname__, settings(vars(value))]
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return np.asarray(value).tolist()
    if isinstance(value, Collection):
        return _collection_settings(value)
    name = getattr(value, "__qualname__", "")
    if not name or "<" in name:
        raise ValueError(
            f"preprocess: {value!r} has no name by which a prepared scan is found again; use a named function"
        )
    return [value.__module__, name]


def _collection_settings(values: Collection[Any]) -> Any:
    if isinstance(values, Mapping):
        return [[settings(key), settings(each)] for key, each in values.items()]
    plain = [settings(each) for each in values]
    return sorted(plain, key=repr) if isinstance(values, Set) else plain


def transformed(subject: tio.Subject, transforms: Sequence[Transform]) -> tio.Subject:
    """Apply the transforms in order; torch's global generator, from which TorchIO draws each time, stays as it was."""
    with torch.random.fork_rng(devices=[]):
        for transform in transforms:
            subject = transform(subject)
    return subject


def _write(folder: Path, case: Case, transforms: Sequence[Transform]) -> None:
    original = case.load()
    subject = transformed(original, transforms)
    drawing, rows_map = original.get_image("label"), subject.get_image("label")
    if case.drawn_planes is not None:
        rows_map.set_data(only_annotated_planes(case.drawn_planes, drawing, rows_map))
    check_planes(case, drawing, rows_map)
    image, label = subject.get_image("image").numpy(), rows_map.numpy()[0]
    if not np.isfinite(image).all():
        raise ValueError(f"{case.subject}: the prepared image has voxels that are no numbers ({case.image})")
    half = np.abs(image).max() <= HALF_PRECISION_LIMIT
    label = label.astype(drawing.numpy().dtype)
    rows = FIRST_NAME + len(case.names)
    places = some_places(label, rows)
    _save(folder / "image.npy", image.astype(np.float16 if half else np.float32))
    _save(folder / "label.npy", label)
    _save(folder / "places.npy", np.concatenate(places))
    meta = {
        "shape": label.shape,
        "affine": rows_map.affine.tolist(),
        "file_shape": drawing.spatial_shape,
        "file_affine": drawing.affine.tolist(),
        "planes": np.flatnonzero((label != UNKNOWN).any(axis=(0, 1))).tolist(),
        "counts": np.bincount(label.ravel(), minlength=rows).tolist(),
        "starts": np.cumsum([0, *map(len, places)]).tolist(),
        "minimum": float(image.min()),
    }
    with (folder / "meta.json").open("w", encoding="utf-8") as file:
        json.dump(meta, file)
        _settle(file.fileno())


def only_annotated_planes(drawn: Sequence[int], original: tio.Image, prepared: tio.Image) -> torch.Tensor:
    """Return the prepared rows with row 0 on planes that resampling would have invented.

    A plane of the network's grid is annotated if both planes of the file around it are, or if it is the nearest of its
    grid to one that is.

    Args:
        drawn: Annotated planes of the file, counted upwards.
        original: Rows on the file's grid.
        prepared: Rows on the network's grid.
    """
    axis, direction = superior_axis(original.affine)
    own_axis, _ = superior_axis(prepared.affine)
    centre = np.tile((np.array(prepared.spatial_shape) - 1) / 2, (prepared.spatial_shape[own_axis], 1))
    centre[:, own_axis] = np.arange(len(centre))
    back = np.linalg.inv(original.affine) @ prepared.affine
    places = centre @ back[axis, :3] + back[axis, 3]
    places = places if direction > 0 else original.spatial_shape[axis] - 1 - places
    below, above = np.floor(places + 1e-3), np.ceil(places - 1e-3)
    annotated = np.isin(below, drawn) & np.isin(above, drawn)
    annotated[[np.abs(places - plane).argmin() for plane in drawn]] = True
    rows = prepared.data.clone()
    rows.movedim(1 + own_axis, 0)[torch.from_numpy(~annotated)] = UNKNOWN
    return rows


def check_planes(case: Case, original: tio.Image, prepared: tio.Image) -> None:
    """Refuse a grid so coarse that it loses an annotated plane.

    Raises:
        ValueError: Names the planes.
    """
    if case.drawn_planes is None:
        return
    axis, direction = superior_axis(original.affine)
    back = np.linalg.inv(original.affine) @ prepared.affine
    voxels = np.argwhere(prepared.numpy()[0] != UNKNOWN)
    planes = np.unique(np.rint(voxels @ back[axis, :3] + back[axis, 3]).astype(int))
    kept = planes if direction > 0 else original.spatial_shape[axis] - 1 - planes
    if lost := sorted(set(case.drawn_planes) - set(kept.tolist())):
        raise ValueError(
            f"{case.subject}: the annotated planes {lost} fall between the planes of the network's grid "
            f"({original.spacing[axis]:g} mm apart in the file); give Resample a target at most as coarse along k"
        )


def some_places(label: Integer[np.ndarray, "i j k"], rows: int) -> list[Integer[np.ndarray, "places 3"]]:
    """Return up to `PLACES_PER_ROW` voxels of each row that stands for a name; none of the others."""
    foreground = np.flatnonzero(label >= FIRST_NAME)
    foreground = foreground[np.argsort(label.ravel()[foreground], kind="stable")]
    ends = np.searchsorted(label.ravel()[foreground], np.arange(rows + 1))
    places = []
    for row, (start, end) in enumerate(pairwise(ends)):
        some = foreground[start:end]
        if len(some) > PLACES_PER_ROW:
            some = np.random.default_rng(row).choice(some, PLACES_PER_ROW, replace=False, shuffle=False)
        places.append(np.stack(np.unravel_index(some, label.shape), axis=1).astype(np.int32))
    return places


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        _settle(file.fileno())


def _settle(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # some network folders refuse; the rename still keeps half stores away
        os.fsync(descriptor)


def _rename(aside: Path, folder: Path) -> None:
    try:
        aside.replace(folder)
    except OSError:  # another process was first: a folder that is not empty cannot be replaced
        if not (folder / "meta.json").is_file():
            raise


def _open(folder: Path) -> Prepared:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return Prepared(folder=folder, **{key: _tuples(value) for key, value in meta.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
