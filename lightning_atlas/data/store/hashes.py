"""Hashes of files' contents, remembered from run to run for files of unchanged size and time."""

import contextlib
import hashlib
import sqlite3
from functools import lru_cache
from pathlib import Path

CREATE = "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, modified_ns INTEGER, sha256 TEXT)"
FIND = "SELECT sha256 FROM files WHERE path = ? AND size = ? AND modified_ns = ?"
KEEP = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)"
WAIT_S = 20


def file_hash(path: Path, memory: Path | None = None) -> str:
    """Return the SHA-256 of a file's content.

    Args:
        path: The file.
        memory: Database of known hashes; a folder that refuses to hold one costs time, nothing else.
    """
    status = path.stat()
    return _file_hash(path.absolute(), status.st_size, status.st_mtime_ns, memory)


@lru_cache(maxsize=1_000_000)
def _file_hash(path: Path, size: int, modified_ns: int, memory: Path | None) -> str:
    key = str(path), size, modified_ns
    with contextlib.suppress(sqlite3.Error, OSError):
        if memory is not None and (found := _connection(memory).execute(FIND, key).fetchone()):
            return found[0]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(sqlite3.Error, OSError):
        if memory is not None:
            _connection(memory).execute(KEEP, (*key, digest))
    return digest


@lru_cache(maxsize=4)
def _connection(memory: Path) -> sqlite3.Connection:
    memory.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(memory, timeout=WAIT_S, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(CREATE)
    return connection
