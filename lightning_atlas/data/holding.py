"""Which classes of a recipe occur in which case: from the values in its label files, without the scan."""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_atlas.data.cases import Case
from lightning_atlas.data.labels.classes import Classes, ClassMap, match_classes
from lightning_atlas.data.store.occurring import Layers, occurring


def held_classes(
    cases: Sequence[Case], wanted: Classes | Mapping[str, Sequence[str]] | None
) -> tuple[tuple[str, ...], list[frozenset[str]]]:
    """Return the recipe's classes, and those of them that somebody drew in each case and that have a voxel there.

    A class of several parts counts where one of them does. Where only parts of a scan were drawn, what lies in the
    others counts as well, since it takes the scan to tell.

    Args:
        cases: Their label files are read, once ever.
        wanted: What the recipe says of its classes.
    """
    datasets = {(case.names, case.vocabulary): None for case in cases if case.names}
    classes = match_classes(datasets, wanted)
    means = {each: _of_names(classes, *each) for each in datasets}
    values = occurring(mark.path for case in cases for mark in case.marks.values())
    held = [
        frozenset().union(*(means[case.names, case.vocabulary][name] for name in _occurring_names(case, values)))
        for case in cases
    ]
    return classes.names, held


def _of_names(classes: ClassMap, names: tuple[str, ...], vocabulary: str | None) -> dict[str, frozenset[str]]:
    """Return for each of a dataset's own names the classes in which its voxels are."""
    alone = np.eye(len(names), dtype=np.int8)
    states = classes.table(alone, np.ones_like(alone, dtype=bool), names, vocabulary).states
    inside = [frozenset(each for each, state in zip(classes.names, row, strict=True) if state == 1) for row in states]
    return dict(zip(names, inside, strict=True))


def _occurring_names(case: Case, values: Mapping[str, Layers]) -> list[str]:
    marks = case.marks
    found = []
    for name in case.names if case.drawn is None else case.drawn:
        mark = marks[name]
        layers = values[mark.path]
        there = layers[mark.layer] if mark.layer < len(layers) else frozenset[int]()
        if mark.value in there or (mark.value is None and max(there, default=0) > 0):
            found.append(name)
    return found
