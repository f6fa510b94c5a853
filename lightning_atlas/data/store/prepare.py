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
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
from jaxtyping import Bool, Int8, Integer
from torchio.transforms import Transform
from tqdm import tqdm

from lightning_atlas.data.cases import UNKNOWN, Case, DrawnOn
from lightning_atlas.data.labels.placement import place
from lightning_atlas.data.store.hashes import file_hash
from lightning_atlas.data.store.reading import read_case

STORE_VERSION = 3
CASES_PER_PROCESS = 8
"""Starting a process takes as long as preparing some scans."""
PLACES_PER_ROW = 2000
"""Voxels of each name that are remembered, for patches to be centred on."""
HALF_PRECISION_LIMIT = 8.0
"""Intensities up to this are kept in 16 bits: the step there is 1/256, in [-1, 1] it is 1/2048."""


@dataclass(frozen=True)
class Prepared:
    """A case in the network's geometry, on disk.

    Args:
        folder: Holds `image.npy` (channels i j k), `label.npy` (i j k), `table.npy` (2 rows names), `places.npy` and
            `meta.json`.
        shape: Voxels along i, j, k.
        affine: From voxels to millimetres (RAS).
        file_shape: Voxels of the original file.
        file_affine: Affine of the original file.
        names: The dataset's own names, the columns of the table.
        digest: Hash of names and table: equal ones need to be taken to the recipe's classes once.
        counts: Number of voxels of each row.
        starts: Where the places of each row begin in `places.npy`, then the observed ones, and the end.
        minimum: The image's minimum, with which patches are padded.
        notes: What was unusual about the files.
    """

    folder: Path
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    file_shape: tuple[int, int, int]
    file_affine: tuple[tuple[float, ...], ...]
    names: tuple[str, ...]
    digest: str
    counts: tuple[int, ...]
    starts: tuple[int, ...]
    minimum: float
    notes: tuple[str, ...]

    def table(self) -> tuple[Int8[np.ndarray, "rows names"], Bool[np.ndarray, "rows names"]]:
        """Return `states` and `drawn` (see `lightning_atlas.types`) in the dataset's own names."""
        table = np.load(self.folder / "table.npy")
        return table[0], table[1].astype(bool)

    def image(self) -> np.ndarray:
        """Return the image as a memory map (channels i j k)."""
        return np.load(self.folder / "image.npy", mmap_mode="r")

    def label(self) -> np.ndarray:
        """Return the rows as a memory map (i j k)."""
        return np.load(self.folder / "label.npy", mmap_mode="r")

    def places(self, row: int) -> Integer[np.ndarray, "places 3"]:
        """Return some voxels of a row."""
        return np.load(self.folder / "places.npy", mmap_mode="r")[self.starts[row] : self.starts[row + 1]]

    def observed(self) -> Integer[np.ndarray, "places 3"]:
        """Return some voxels on which somebody decided; none where that is every voxel."""
        return self.places(len(self.counts))


def prepare(case: Case, transforms: Sequence[Transform]) -> tuple[Prepared, bool]:
    """Return the case in the network's geometry, and whether it had to be made now."""
    return prepare_all([case], transforms, processes=1)[0]


def prepare_all(
    cases: Sequence[Case], transforms: Sequence[Transform], processes: int | None = None
) -> list[tuple[Prepared, bool]]:
    """Return every case prepared, in order, with a bar where that takes long.

    Args:
        cases: To prepare.
        transforms: As for one.
        processes: How many work side by side; by default as many as there are processors, but one for few cases.
    """
    folders = [store_root() / store_key(case, transforms) for case in cases]
    missing = [n for n, folder in enumerate(folders) if not (folder / "meta.json").is_file()]
    processes = min(len(missing) // CASES_PER_PROCESS, os.cpu_count() or 1) if processes is None else processes
    make = partial(_make, transforms=list(transforms))
    chosen = [(cases[n], folders[n]) for n in missing]
    with tqdm(total=len(missing), desc="prepare", unit="scan", disable=len(missing) < CASES_PER_PROCESS) as bar:
        if processes < 2:
            for each in chosen:
                make(each)
                bar.update()
        else:
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                for waiting in as_completed([pool.submit(make, each) for each in chosen]):
                    waiting.result()
                    bar.update()
    made = set(missing)
    return [(_open(folder), n in made) for n, folder in enumerate(folders)]


def _make(case_and_folder: tuple[Case, Path], transforms: Sequence[Transform]) -> None:
    case, folder = case_and_folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    aside.mkdir()
    try:
        _write(aside, case, transforms)
        _rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
        "channels": [[channel, content(path)] for channel, path in case.channels.items()],
        "marks": [[name, content(mark.file), mark.value, mark.layer] for name, mark in case.marks.items()],
        "label": None if case.label is None else content(case.label),
        "ignore_value": case.ignore_value,
        "drawn": case.drawn,
        "drawn_on": [_place_settings(place) for place in case.drawn_on],
        "variation": None if case.variation is None else asdict(case.variation),
        "transforms": [settings(transform) for transform in transforms],
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def content(path: Path) -> str:
    """Return the hash of a file's content."""
    return file_hash(path, store_root().parent / "files.sqlite")


def _place_settings(place: DrawnOn) -> dict[str, Any]:
    return asdict(place) | {"mask": None if place.mask is None else content(place.mask)}


def settings(value: Any) -> Any:
    """Return a transform and all its attributes as plain data.

    Raises:
        ValueError: It holds a function without a name, of which nobody can say whether it changed.
    """
    if isinstance(value, Path | str):
        return content(Path(value)) if Path(value).suffix and Path(value).is_file() else str(value)
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
    original, drawing = read_case(case)
    subject = transformed(original, transforms)
    grid = subject.get_image("image")
    try:
        placed = place(drawing, grid.affine, grid.spatial_shape)
    except ValueError as error:
        raise ValueError(f"{case.subject}: {error}") from error
    image, label = grid.numpy(), placed.rows
    if not np.isfinite(image).all():
        raise ValueError(f"{case.subject}: the prepared image has voxels that are no numbers ({case.image})")
    half = np.abs(image).max() <= HALF_PRECISION_LIMIT
    rows = len(placed.states)
    places = [*some_places(label, (placed.states == 1).any(axis=1)), some_observed(label)]
    _save(folder / "image.npy", image.astype(np.float16 if half else np.float32))
    _save(folder / "label.npy", label)
    _save(folder / "places.npy", np.concatenate(places))
    table = np.stack([placed.states, placed.drawn.astype(np.int8)])
    _save(folder / "table.npy", table)
    meta = {
        "shape": label.shape,
        "affine": grid.affine.tolist(),
        "file_shape": original.spatial_shape,
        "file_affine": drawing.affine.tolist(),
        "names": placed.names,
        "digest": hashlib.sha256(json.dumps([placed.names, table.tolist()]).encode()).hexdigest()[:32],
        "counts": np.bincount(label.ravel(), minlength=rows).tolist(),
        "starts": np.cumsum([0, *map(len, places)]).tolist(),
        "minimum": float(image.min()),
        "notes": drawing.notes,
    }
    with (folder / "meta.json").open("w", encoding="utf-8") as file:
        json.dump(meta, file)
        _settle(file.fileno())


def some_places(
    label: Integer[np.ndarray, "i j k"], inside: Bool[np.ndarray, " rows"]
) -> list[Integer[np.ndarray, "places 3"]]:
    """Return up to `PLACES_PER_ROW` voxels of each row that is inside some structure; none of the others."""
    flat = label.ravel()
    foreground = np.flatnonzero(inside[flat])
    foreground = foreground[np.argsort(flat[foreground], kind="stable")]
    ends = np.searchsorted(flat[foreground], np.arange(len(inside) + 1))
    return [_some(foreground[start:end], label.shape, row) for row, (start, end) in enumerate(pairwise(ends))]


def some_observed(label: Integer[np.ndarray, "i j k"]) -> Integer[np.ndarray, "places 3"]:
    """Return some voxels on which somebody decided; none where that is every voxel."""
    observed = np.flatnonzero(label != UNKNOWN)
    return _some(observed if len(observed) < label.size else observed[:0], label.shape, 0)


def _some(voxels: np.ndarray, shape: tuple[int, ...], seed: int) -> Integer[np.ndarray, "places 3"]:
    if len(voxels) > PLACES_PER_ROW:
        voxels = np.random.default_rng(seed).choice(voxels, PLACES_PER_ROW, replace=False, shuffle=False)
    return np.stack(np.unravel_index(voxels, shape), axis=1).astype(np.int32)


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
