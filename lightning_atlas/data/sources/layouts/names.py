"""Names of structures that are spelled in several ways across the cases of a dataset."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher, get_close_matches
from itertools import combinations

from lightning_atlas.data.cases import Case

ALIKE, FEWEST_LETTERS = 0.85, 4
"""Two words may be one with a slip of the pen from this ratio of `difflib` on, and with so many letters."""


def spelling_notes(cases: Sequence[Case]) -> list[str]:
    """Return a line for each name that seems to be another one in other letters, with what to add."""
    holders: dict[str, set[int]] = {}
    for number, case in enumerate(cases):
        for name in case.marks:
            holders.setdefault(name, set()).add(number)
    notes = []
    for usual, other in _pairs(holders):
        both = holders[usual] & holders[other]
        if not both:
            line = f"aliases: {{{json.dumps(other, ensure_ascii=False)}: {usual}}}"
            times = f"{len(holders[other])} cases) may be {usual!r} ({len(holders[usual])} cases"
            notes.append(f"{other!r} ({times}); if so, add {line}")
        elif _same_letters(usual, other):
            subject = cases[min(both)].subject
            notes.append(
                f"{usual!r} and {other!r} are both in {len(both)} cases ({subject}); rename or merge one of them"
            )
    return notes


def rename(cases: Sequence[Case], aliases: Mapping[str, str]) -> list[Case]:
    """Return the cases with names replaced.

    Args:
        cases: The cases.
        aliases: Name in the files -> name to read it as.

    Raises:
        ValueError: No case has such a name, or a case has both.
    """
    known = {name for case in cases for name in case.marks}
    if strange := [name for name in aliases if name not in known]:
        near = get_close_matches(strange[0], known, n=3) or sorted(known)[:8]
        raise ValueError(f"aliases: no case has the name {strange[0]!r}; near are {', '.join(map(repr, near))}")
    return [_renamed(case, aliases) for case in cases]


def _renamed(case: Case, aliases: Mapping[str, str]) -> Case:
    names = [aliases.get(name, name) for name in case.marks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"aliases give {case.subject} two structures called {twice[0]!r}; leave one of them out")
    return replace(
        case,
        values={aliases.get(name, name): value for name, value in case.values.items()},
        masks={aliases.get(name, name): mark for name, mark in case.masks.items()},
        drawn=None if case.drawn is None else tuple(aliases.get(name, name) for name in case.drawn),
    )


def _pairs(holders: Mapping[str, set[int]]) -> Iterator[tuple[str, str]]:
    """Yield pairs of variants, the more frequent first, then the one of small letters."""
    ordered = sorted(holders, key=lambda name: (-len(holders[name]), name != name.strip().lower(), name))
    told: set[str] = set()
    for usual, other in combinations(ordered, 2):
        if other not in told and (_same_letters(usual, other) or _slip(usual, other)):
            told.add(other)
            yield usual, other


def _words(name: str) -> list[str]:
    """Split a name at spaces, `_` and `-`; the plural is taken for the singular."""
    words = re.split(r"[\s_.-]+", name.strip().casefold())
    return [word[:-1] if len(word) > FEWEST_LETTERS and word.endswith("s") else word for word in words]


def _same_letters(one: str, other: str) -> bool:
    ones, others = _words(one), _words(other)
    return sorted(ones) == sorted(others) or "".join(ones) == "".join(others)


def _slip(one: str, other: str) -> bool:
    ones, others = _words(one), _words(other)
    if len(ones) != len(others):
        return False
    differing = [pair for pair in zip(ones, others, strict=True) if pair[0] != pair[1]]
    if len(differing) != 1 or not all(word.isalpha() and len(word) >= FEWEST_LETTERS for word in differing[0]):
        return False
    return SequenceMatcher(None, *differing[0]).ratio() >= ALIKE
