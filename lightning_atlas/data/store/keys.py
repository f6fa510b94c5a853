"""What a store is called: a hash of all that made it, the files' content, the case and each transform's settings."""

import hashlib
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
from torchio.transforms import Transform

from lightning_atlas.data.cases import Case, DrawnOn
from lightning_atlas.data.store.hashes import file_hashes

STORE_VERSION = 4


def store_root() -> Path:
    """Return the folder of all stores: `LIGHTNING_ATLAS_CACHE`, or one in the user's cache folder."""
    if chosen := os.environ.get("LIGHTNING_ATLAS_CACHE"):
        return Path(chosen) / "prepared"
    caches = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "lightning_atlas" / "prepared"


def store_key(case: Case, transforms: Sequence[Transform]) -> str:
    """Return a hash of all that a store is made of; names of folders and subjects are not among it."""
    return Keys(transforms).of(case)


class Keys:
    """Keys of stores that are made by the same transforms.

    Args:
        transforms: By which scans are prepared.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self._memory = _memory()
        self._transforms = [settings(transform) for transform in transforms]

    def of(self, case: Case) -> str:
        """Return the key of a case; files whose hashes are not known are read."""
        return self._key(case, file_hashes(_files(case), self._memory))

    def known(self, case: Case) -> str | None:
        """Return the key of a case, or `None` where a file would have to be read to tell it."""
        files = _files(case)
        content = file_hashes(files, self._memory, read=False)
        return self._key(case, content) if len(content) == len(files) else None

    def _key(self, case: Case, content: Mapping[str, str]) -> str:
        made_of = {
            "version": [STORE_VERSION, tio.__version__],
            "channels": [[channel, content[str(path)]] for channel, path in case.channels.items()],
            "marks": [[name, content[mark.path], mark.value, mark.layer] for name, mark in case.marks.items()],
            "label": None if case.label is None else content[str(case.label)],
            "ignore_value": case.ignore_value,
            "drawn": case.drawn,
            "drawn_on": [_place_settings(place, content) for place in case.drawn_on],
            "variation": None if case.variation is None else asdict(case.variation),
            "transforms": self._transforms,
        }
        if case.slab is not None:
            planes = [content[str(file)] for file in case.slab.files(case.channels["image"])]
            made_of["slab"] = [asdict(case.slab), planes]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def settings(value: Any) -> Any:
    """Return a transform and all its attributes as plain data.

    Raises:
        ValueError: It holds a function without a name, of which nobody can say whether it changed.
    """
    if isinstance(value, Path | str):
        name = str(value)
        return file_hashes([name], _memory())[name] if Path(value).suffix and Path(value).is_file() else name
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


def _place_settings(place: DrawnOn, content: Mapping[str, str]) -> dict[str, Any]:
    return asdict(place) | {"mask": None if place.mask is None else content[str(place.mask)]}


def _files(case: Case) -> set[str]:
    files = {*case.channels.values(), case.label, *(place.mask for place in case.drawn_on)} - {None}
    planes = () if case.slab is None else map(str, case.slab.files(case.channels["image"]))
    return {str(file) for file in files} | {mark.path for mark in case.masks.values()} | set(planes)


def _memory() -> Path:
    return store_root().parent / "files.sqlite"
