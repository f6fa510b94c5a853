"""From a dataset's own names to a recipe's classes: arithmetic on tables, never on voxels."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
from jaxtyping import Bool, Int8

Parts = dict[str, tuple[str, ...]]
"""Class of the recipe -> the dataset's own names that it merges."""


def match_classes(names: Sequence[str], classes: Mapping[str, Sequence[str]] | None) -> Parts:
    """Resolve the patterns of a recipe against a dataset's names.

    Args:
        names: The dataset's own names.
        classes: Class -> names or patterns such as `rib_*`; `None` makes each name a class.

    Raises:
        ValueError: A pattern matches nothing, or a name belongs to two classes.
    """
    if classes is None:
        return {name: (name,) for name in names}
    parts = {name: tuple(_matching(names, name, patterns)) for name, patterns in classes.items()}
    owner: dict[str, str] = {}
    for name, members in parts.items():
        for member in members:
            if owner.setdefault(member, name) != name:
                raise ValueError(
                    f"classes: {member} would belong to {owner[member]} and to {name}, but classes exclude each other; "
                    "take it out of one of them"
                )
    return parts


def _matching(names: Sequence[str], name: str, patterns: Sequence[str]) -> list[str]:
    if isinstance(patterns, str):
        raise ValueError(f"classes: {name} needs a list of names, not {patterns!r}; write {name}: [{patterns}]")
    found: list[str] = []
    for pattern in patterns:
        matching = [each for each in names if fnmatchcase(each, pattern)]
        if not matching:
            near = get_close_matches(pattern, names, n=4, cutoff=0.5) or names[:8]
            raise ValueError(f"classes: {name}: nothing is called {pattern!r} in this dataset; near: {', '.join(near)}")
        found += [each for each in matching if each not in found]
    return found


def map_table(
    states: Int8[np.ndarray, "rows names"],
    drawn: Bool[np.ndarray, "rows names"],
    names: Sequence[str],
    parts: Parts,
) -> tuple[Int8[np.ndarray, "rows classes"], Bool[np.ndarray, "rows classes"]]:
    """Take a case's table from its own names to the recipe's classes.

    A class is the three-valued `or` of its parts, and drawn where all its parts are; a part that the case does not know
    is unknown in each of its voxels.
    """
    column = {name: number for number, name in enumerate(names)}
    class_states = np.full((len(states), len(parts)), -1, dtype=np.int8)
    class_drawn = np.zeros((len(states), len(parts)), dtype=bool)
    for number, members in enumerate(parts.values()):
        known = [column[member] for member in members if member in column]
        complete = bool(members) and len(known) == len(members)
        some_unknown = (states[:, known] == -1).any(axis=1) | (not complete)
        class_states[:, number] = np.where((states[:, known] == 1).any(axis=1), 1, np.where(some_unknown, -1, 0))
        class_drawn[:, number] = drawn[:, known].all(axis=1) & complete
    return class_states, class_drawn


def mirrored_pair(classes: Sequence[str]) -> tuple[str, str] | None:
    """Return two classes that are each other's mirror image by name, if there are any."""
    for name in classes:
        mirrored = re.sub("left|right", lambda side: "right" if side.group() == "left" else "left", name)
        if mirrored != name and mirrored in classes:
            return name, mirrored
    return None
