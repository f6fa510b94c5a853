"""Hashes of files' contents, remembered from run to run for files of unchanged size and time."""

import contextlib
import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

from lightning_atlas.data.formats import DETACHED, parts

CREATE = "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, modified_ns INTEGER, sha256 TEXT)"
FIND = "SELECT path, size, modified_ns, sha256 FROM files WHERE path IN ({})"
KEEP = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)"
AT_ONCE = 500
"""Files that are asked for at once; SQLite may refuse more than 999."""
WAIT_S = 20

State = tuple[str, int, int]
"""Absolute path, size and time of the last change: what a hash is known by."""


def file_hashes(paths: Iterable[str], memory: Path, read: bool = True) -> dict[str, str]:
    """Return path -> SHA-256 of what it holds; a DICOM series or a header stands for all of its files.

    Args:
        paths: Files and folders.
        memory: Database of known hashes; a folder that refuses to hold one costs time, nothing else.
        read: Read the files whose hashes are not known; else these are left out.
    """
    states = {path: _states(path) for path in paths}
    known = _recalled(chain.from_iterable(states.values()), memory)
    if read and (new := {state: _hash(state) for each in states.values() for state in each if state not in known}):
        _remember(new, memory)
        known |= new
    return {path: _joined([known[state] for state in each]) for path, each in states.items() if known.keys() >= {*each}}


def _states(path: str) -> list[State]:
    status = os.stat(path)  # noqa: PTH116 - a `Path` takes longer than what it is asked, and there are many
    if stat.S_ISDIR(status.st_mode) or path.lower().endswith(DETACHED):
        return [_state(str(part), part.stat()) for part in parts(Path(path))]
    return [_state(path, status)]


def _state(path: str, status: os.stat_result) -> State:
    whole = path if os.path.isabs(path) else str(Path(path).absolute())  # noqa: PTH117 - as above
    return whole, status.st_size, status.st_mtime_ns


def _recalled(states: Iterable[State], memory: Path) -> dict[State, str]:
    known: dict[State, str] = {}
    names = iter(states)
    with contextlib.suppress(sqlite3.Error, OSError):
        while some := [state[0] for state in islice(names, AT_ONCE)]:
            rows = _connection(memory).execute(FIND.format(",".join("?" * len(some))), some)
            known |= {(path, size, modified_ns): sha256 for path, size, modified_ns, sha256 in rows}
    return known


def _remember(known: dict[State, str], memory: Path) -> None:
    with contextlib.suppress(sqlite3.Error, OSError):
        _connection(memory).executemany(KEEP, [(*state, sha256) for state, sha256 in known.items()])


def _hash(state: State) -> str:
    with Path(state[0]).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _joined(hashes: list[str]) -> str:
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


@lru_cache(maxsize=4)
def _connection(memory: Path) -> sqlite3.Connection:
    memory.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(memory, timeout=WAIT_S, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(CREATE)
    return connection
