"""Where a checkpoint keeps its weights, and which others it keeps beside them: averages, teachers, students."""

import re
from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any

from torch import Tensor

from lightning_atlas.intake.key_rules import WRAPPERS, Shapes, common_wrapper

NESTS = ("state_dict", "net", "network_weights", "model", "model_state_dict", "teacher", "student")
"""Where checkpoints keep their state dict: Lightning and MONAI, SuPreM, nnU-Net, and others."""
NESTED = 2
"""How deep such nests lie in each other."""
LOOKED_AT = 4
"""How deep others are looked for."""
ALIKE = 0.5
"""Tensors that are the same by name and shape in so large a share are another set of the same weights."""

SETS = re.compile(r"ema|averag|shadow|momentum|teacher|student|target|online")
"""What is in the names of sets of weights that lie in one state dict."""

Tensors = dict[str, Tensor]


def state_dict(content: Mapping[Any, Any], depth: int = NESTED) -> Tensors:
    """Return the tensors under the first known nest that has any, else those at the top level."""
    inner = (content.get(name) for name in NESTS if depth)
    found = (state_dict(each, depth - 1) for each in inner if isinstance(each, Mapping))
    return next((tensors for tensors in found if tensors), _own(content))


def state_dict_at(content: Mapping[Any, Any], nest: str) -> Tensors:
    """Return the tensors in a nest of one's choice, or those whose names begin with it.

    Args:
        content: Of a checkpoint.
        nest: The nest, as `model_ema`, or several in each other, as `callbacks.EMA.average`.

    Raises:
        ValueError: There are none; it names the other sets that there are.
    """
    inner = _inner(content, nest)
    if isinstance(inner, Mapping) and (found := state_dict(inner)):
        return found
    usual = state_dict(content)
    if found := {name[len(nest) + 1 :]: each for name, each in usual.items() if name.startswith(f"{nest}.")}:
        return found
    others = ", ".join(other_sets(content, usual)) or "none besides the usual one"
    raise ValueError(f"there are no tensors under {nest!r}; other sets of weights: {others}")


def other_sets(content: Mapping[Any, Any], chosen: Mapping[str, Tensor]) -> list[str]:
    """Return the nests, and the beginnings of names, under which a checkpoint keeps the same weights once more.

    Args:
        content: Of the checkpoint.
        chosen: The weights that were taken.
    """
    shapes = _shapes(chosen)
    sets = {path: _shapes(each) for path, each in _sets(content, LOOKED_AT)}
    memory = {id(each) for each in chosen.values()}
    own = {path for path, each in _sets(content, LOOKED_AT) if memory & {id(tensor) for tensor in each.values()}}
    return [path for path, each in sets.items() if path and path not in own and _alike(shapes, each)]


def twins(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the beginnings of names under which one state dict has the same weights several times."""
    groups: dict[str, Tensors] = {}
    for name, each in tensors.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = each
    shapes = {first: _shapes(each) for first, each in groups.items() if first}
    pairs = [(a, b) for a, b in permutations(shapes, 2) if SETS.search(f"{a} {b}".lower())]
    return list(dict.fromkeys(a for a, b in pairs if _within(shapes[a], shapes[b]) or _within(shapes[b], shapes[a])))


def _inner(content: Any, nest: str) -> Any:
    """Return what lies under a path of keys, which may hold points themselves."""
    if not isinstance(content, Mapping):
        return None
    if nest in content:
        return content[nest]
    below = (
        _inner(each, nest[len(key) + 1 :])
        for key, each in content.items()
        if isinstance(key, str) and nest.startswith(f"{key}.")
    )
    return next((each for each in below if each is not None), None)


def _sets(content: Mapping[Any, Any], depth: int, path: str = "") -> Iterator[tuple[str, Tensors]]:
    if own := _own(content):
        yield path, own
    for key, each in content.items():
        if depth and isinstance(key, str) and isinstance(each, Mapping):
            yield from _sets(each, depth - 1, f"{path}.{key}" if path else key)


def _own(content: Mapping[Any, Any]) -> Tensors:
    return {name: each for name, each in content.items() if isinstance(name, str) and isinstance(each, Tensor)}


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    wrapper = common_wrapper(tensors)
    return {name[len(wrapper) :]: tuple(each.shape) for name, each in tensors.items()}


def _alike(ours: Shapes, theirs: Shapes) -> bool:
    for dropped in ("", *WRAPPERS):
        bare = {name.removeprefix(dropped): shape for name, shape in theirs.items()}
        if sum(bare.get(name) == shape for name, shape in ours.items()) >= ALIKE * max(1, len(ours)):
            return True
    return False


def _within(ours: Shapes, theirs: Shapes) -> bool:
    return all(theirs.get(name) == shape for name, shape in ours.items())
