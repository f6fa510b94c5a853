"""Read each case once, apply the deterministic transforms, and keep the result as memory-mapped files.

A store is a folder named after a hash of all that made it (see `keys`). Where a file's hash is not known yet, it is
taken right before the voxels are read, while the system has the file in memory. A store is written aside and renamed,
so that a killed run leaves no half store and two runs may write the same one.
"""

import contextlib
import copy
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
from jaxtyping import Bool, Int8, Integer
from torchio.transforms import Resample, Transform
from tqdm import tqdm

from lightning_atlas.data.air import levels_above_air
from lightning_atlas.data.cases import UNKNOWN, Case
from lightning_atlas.data.labels.drawing import rows_on_planes
from lightning_atlas.data.labels.placement import place
from lightning_atlas.data.store.keys import Keys, store_root
from lightning_atlas.data.store.maps import mapped
from lightning_atlas.data.store.reading import read_case

CASES_PER_PROCESS = 8
"""Starting a process takes as long as preparing some scans."""
PLACES_PER_ROW = 2000
"""Voxels of each name that are remembered, for patches to be centred on."""
HALF_PRECISION_LIMIT = 8.0
"""Intensities up to this are kept in 16 bits: the step there is 1/256, in [-1, 1] it is 1/2048."""
SAME_SPACING, ROUNDED_DOWN = 1e-3, 1e-12
"""Spacings that differ by less, relatively, are one; so much less than a spacing is never a plane too few."""
META = "meta.json"
TOLD = 3
"""Scans that cannot be prepared and are named in one message."""
KNOWN_STORES = 512
"""Of so many stores is remembered what they say of themselves; memory does not grow with the number of subjects."""


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
        levels: Of each channel of the image, its percentiles `contract.LEVELS` above air; older stores lack them.
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
    levels: tuple[tuple[float, ...], ...] = ()

    def table(self) -> tuple[Int8[np.ndarray, "rows names"], Bool[np.ndarray, "rows names"]]:
        """Return `states` and `drawn` (see `lightning_atlas.types`) in the dataset's own names."""
        table = np.load(self.folder / "table.npy")
        return table[0], table[1].astype(bool)

    def image(self) -> np.ndarray:
        """Return the image as a memory map (channels i j k)."""
        return mapped(self.folder, "image.npy")

    def label(self) -> np.ndarray:
        """Return the rows as a memory map (i j k)."""
        return mapped(self.folder, "label.npy")

    def places(self, row: int) -> Integer[np.ndarray, "places 3"]:
        """Return some voxels of a row."""
        return mapped(self.folder, "places.npy")[self.starts[row] : self.starts[row + 1]]

    def observed(self) -> Integer[np.ndarray, "places 3"]:
        """Return some voxels on which somebody decided; none where that is every voxel."""
        return self.places(len(self.counts))


def prepare(case: Case, transforms: Sequence[Transform]) -> tuple[Prepared, bool]:
    """Return the case in the network's geometry, and whether it had to be made now."""
    ((folder, new),) = prepare_all([case], transforms, processes=1)
    return open_store(folder), new


def prepare_all(
    cases: Sequence[Case], transforms: Sequence[Transform], processes: int | None = None
) -> list[tuple[Path, bool]]:
    """Prepare every case, with a bar where that takes long; return each store and whether it was made now, in order.

    Args:
        cases: To prepare.
        transforms: As for one.
        processes: How many work side by side; by default as many as there are processors, but one for few cases.

    Raises:
        ValueError: Scans cannot be prepared; it names them all, or the first and how many more.
    """
    root, keys = store_root(), Keys(transforms)
    found = [(root / key, False) if (key := keys.known(case)) else None for case in cases]
    missing = [n for n, each in enumerate(found) if each is None or not (each[0] / META).is_file()]
    processes = min(len(missing) // CASES_PER_PROCESS, os.cpu_count() or 1) if processes is None else processes
    make, refused = partial(_make, transforms=list(transforms)), []
    with tqdm(total=len(missing), desc="prepare", unit="scan", disable=len(missing) < CASES_PER_PROCESS) as bar:
        if processes < 2:
            for n in missing:
                try:
                    found[n] = make(cases[n])
                except ValueError as error:
                    refused.append(error)
                bar.update()
        else:
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                waiting = {pool.submit(make, cases[n]): n for n in missing}
                for done in as_completed(waiting):
                    try:
                        found[waiting[done]] = done.result()
                    except ValueError as error:
                        refused.append(error)
                    bar.update()
    if refused:
        raise refused[0] if len(refused) == 1 else ValueError(_in_one(refused, len(missing)))
    return [each for each in found if each is not None]


def _in_one(refused: Sequence[ValueError], of: int) -> str:
    told = [str(each).replace("\n", " ") for each in refused]
    more = f"\nand {len(told) - TOLD} more; `prepare PATH --check` lists every defect of a folder"
    shown = "\n".join(f"  {each}" for each in told[:TOLD])
    return f"{len(told)} of {of} scans cannot be prepared:\n{shown}" + (more if len(told) > TOLD else "")


def _make(case: Case, transforms: Sequence[Transform]) -> tuple[Path, bool]:
    folder = store_root() / Keys(transforms).of(case)
    if (folder / META).is_file():
        return folder, False
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    aside.mkdir()
    try:
        _write(aside, case, transforms)
        _rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder, True


@lru_cache(maxsize=KNOWN_STORES)
def open_store(folder: Path) -> Prepared:
    """Return what a store holds; no voxel is read."""
    told = json.loads((folder / META).read_text(encoding="utf-8"))
    return Prepared(folder=folder, **{key: _tuples(value) for key, value in told.items()})


def transformed(subject: tio.Subject, transforms: Sequence[Transform]) -> tio.Subject:
    """Apply the transforms in order, to the subject itself; torch's global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):  # TorchIO draws from it even where nothing is random
        for transform in transforms:
            in_place = copy.copy(transform)
            in_place.copy = False  # else each transform begins with a copy of the whole scan
            if isinstance(in_place, Resample):
                in_place.target = _target(in_place.target, subject.spacing)
            subject = in_place(subject)
    return subject


def _target(given: Any, spacing_mm: tuple[float, float, float]) -> Any:
    """Return what to resample to; a spacing that is the image's own but for rounding stays.

    TorchIO rounds the number of planes down, so that 30 planes of 9.999999999999996 mm would become 29 of 10 mm, each
    halfway between two.
    """
    wanted = [given] * 3 if isinstance(given, int | float) else given
    if not (isinstance(wanted, list | tuple) and len(wanted) == 3):
        return given
    return tuple(
        own * (1 - ROUNDED_DOWN) if abs(each / own - 1) < SAME_SPACING else each
        for each, own in zip(wanted, spacing_mm, strict=True)
    )


def _write(folder: Path, case: Case, transforms: Sequence[Transform]) -> None:
    subject, drawing = read_case(case)
    file_shape = subject.spatial_shape
    subject = transformed(subject, transforms)
    grid = subject.get_image("image")
    try:
        placed = place(drawing, grid.affine, grid.spatial_shape)
    except ValueError as error:
        raise ValueError(f"{case.subject}: {error}") from error
    image, label = grid.numpy(), placed.rows
    lowest, highest = float(image.min()), float(image.max())
    if not np.isfinite([lowest, highest]).all():
        raise ValueError(f"{case.subject}: the prepared image has voxels that are no numbers ({case.image})")
    half = max(-lowest, highest) <= HALF_PRECISION_LIMIT
    places = [*some_places(label, (placed.states == 1).any(axis=1)), some_observed(label)]
    _save(folder / "image.npy", image.astype(np.float16 if half else np.float32))
    _save(folder / "label.npy", label)
    _save(folder / "places.npy", np.concatenate(places))
    table = np.stack([placed.states, placed.drawn.astype(np.int8)])
    _save(folder / "table.npy", table)
    meta = {
        "shape": label.shape,
        "affine": grid.affine.tolist(),
        "file_shape": file_shape,
        "file_affine": drawing.affine.tolist(),
        "names": placed.names,
        "digest": hashlib.sha256(json.dumps([placed.names, table.tolist()]).encode()).hexdigest()[:32],
        "counts": rows_on_planes(placed, 0).sum(axis=0).tolist(),
        "starts": np.cumsum([0, *map(len, places)]).tolist(),
        "minimum": lowest,
        "notes": drawing.notes,
        "levels": levels_above_air(image),
    }
    with (folder / META).open("w", encoding="utf-8") as file:
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
    voxels = [foreground[start:end][_some(int(end - start), row)] for row, (start, end) in enumerate(pairwise(ends))]
    return [np.stack(np.unravel_index(each, label.shape), axis=1).astype(np.int32) for each in voxels]


def some_observed(label: Integer[np.ndarray, "i j k"]) -> Integer[np.ndarray, "places 3"]:
    """Return some voxels on which somebody decided; none where that is every voxel."""
    known = label != UNKNOWN
    if known.all():
        return np.empty((0, 3), dtype=np.int32)
    upto = np.cumsum(np.count_nonzero(known, axis=(1, 2)))  # a list of all of them may take far more than the label
    chosen = _some(int(upto[-1]), 0)
    planes = np.searchsorted(upto, chosen, side="right")
    places = np.empty((len(chosen), 3), dtype=np.int32)
    for plane in np.unique(planes):
        here, voxels = planes == plane, np.argwhere(known[plane])
        places[here, 0], places[here, 1:] = plane, voxels[chosen[here] - upto[plane] + len(voxels)]
    return places


def _some(count: int, seed: int) -> Integer[np.ndarray, " some"]:
    if count <= PLACES_PER_ROW:
        return np.arange(count)
    return np.random.default_rng(seed).choice(count, PLACES_PER_ROW, replace=False, shuffle=False)


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
        if not (folder / META).is_file():
            raise


def _tuples(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return tuple(map(_tuples, value)) if value and isinstance(value[0], list) else tuple(value)
