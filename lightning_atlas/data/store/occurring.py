"""Which values occur in label files; remembered by the files' content from run to run."""

import contextlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from tqdm import tqdm

from lightning_atlas.data.formats import read_labels
from lightning_atlas.data.store.hashes import WAIT_S, file_hashes
from lightning_atlas.data.store.keys import store_root

CREATE = "CREATE TABLE IF NOT EXISTS occurring (sha256 TEXT PRIMARY KEY, layers TEXT)"
FIND = "SELECT layers FROM occurring WHERE sha256 = ?"
KEEP = "INSERT OR REPLACE INTO occurring VALUES (?, ?)"
MANY = 8
"""A bar is shown for more files than this."""

Layers = tuple[frozenset[int], ...]


def occurring(paths: Iterable[str]) -> dict[str, Layers]:
    """Return path -> the values other than 0 in each layer of it; files that were not looked at before are read.

    Args:
        paths: Label maps, masks and segmentations.

    Raises:
        ValueError: A file is damaged.
    """
    memory = store_root().parent / "files.sqlite"
    hashes = file_hashes(dict.fromkeys(paths), memory)
    known = {path: layers for path, sha256 in hashes.items() if (layers := _recalled(sha256, memory)) is not None}
    new = [path for path in hashes if path not in known]
    for path in tqdm(new, desc="classes in labels", unit="file", disable=len(new) <= MANY):
        known[path] = tuple(_values(layer) for layer in read_labels(Path(path)).numpy())
        _remember(hashes[path], known[path], memory)
    return known


def _values(layer: Integer[np.ndarray, "i j k"]) -> frozenset[int]:
    lowest = min(0, int(layer.min()))
    counts = np.zeros(int(layer.max()) - lowest + 1, dtype=np.int64)
    for plane in layer:  # plane by plane, since the numbers are widened to count them
        counts += np.bincount(plane.ravel(order="K").astype(np.int64) - lowest, minlength=len(counts))
    return frozenset(int(value) + lowest for value in np.flatnonzero(counts)) - {0}


def _recalled(sha256: str, memory: Path) -> Layers | None:
    with contextlib.suppress(sqlite3.Error, OSError), contextlib.closing(_connected(memory)) as connection:
        if row := connection.execute(FIND, (sha256,)).fetchone():
            return tuple(frozenset(layer) for layer in json.loads(row[0]))
    return None


def _remember(sha256: str, layers: Layers, memory: Path) -> None:
    with contextlib.suppress(sqlite3.Error, OSError), contextlib.closing(_connected(memory)) as connection:
        connection.execute(KEEP, (sha256, json.dumps([sorted(layer) for layer in layers])))


def _connected(memory: Path) -> sqlite3.Connection:
    memory.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(memory, timeout=WAIT_S, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(CREATE)
    return connection
