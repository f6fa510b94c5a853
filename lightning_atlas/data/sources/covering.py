"""Few training patients who have every class between them: the smallest such group first, then all others."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

Patient = TypeVar("Patient")

STEPS = 2000
"""So many groups are begun in the search for one of a size; where that ends it, a group may be larger than it must."""


def covering_order(patients: Sequence[Patient], held: Mapping[Patient, frozenset[str]]) -> tuple[list[Patient], int]:
    """Return all patients, and how many of the first have every class that any of them has, which are as few as can be.

    Of those first ones each adds the most classes that is left to add; what is equal otherwise, and all the others,
    stay in the order given. Each beginning of the list therefore lies in all longer ones, and has every class as soon
    as so many patients can.

    Args:
        patients: In an order that chance chose.
        held: The classes that each of them has.
    """
    names = sorted(
        frozenset().union(*held.values()), key=lambda name: (sum(name in each for each in held.values()), name)
    )
    sets = {each: sum(1 << place for place, name in enumerate(names) if name in held[each]) for each in patients}
    first = {own: each for each, own in reversed(sets.items()) if own}  # of those who hold the same
    kinds = [own for each, own in sets.items() if first.get(own) == each]
    wanted = (1 << len(names)) - 1
    group = _by_gain(kinds, wanted)
    for size in range(1, len(group)):
        if found := _group(kinds, wanted, size, iter(range(STEPS))):
            group = _by_gain([own for own in kinds if own in found], wanted)
            break
    chosen = [first[own] for own in group]
    return [*chosen, *(each for each in patients if each not in chosen)], len(chosen)


def _by_gain(kinds: Sequence[int], missing: int) -> list[int]:
    """Return sets of classes, as bits, each of which adds the most to those before it, until nothing is missing."""
    group: list[int] = []
    while missing:
        group.append(max(kinds, key=lambda own: (own & missing).bit_count()))  # the first of several
        missing &= ~group[-1]
    return group


def _group(kinds: Sequence[int], missing: int, size: int, steps: Iterator[int]) -> list[int] | None:
    """Return so many sets at most that have all that is missing; `None` where there are none, or no steps are left.

    Somebody has to hold the rarest class, which is the lowest bit, so only these are tried.
    """
    if not missing:
        return []
    if next(steps, None) is None or size * max((own & missing).bit_count() for own in kinds) < missing.bit_count():
        return None
    rarest = missing & -missing
    gains = {own & missing: own for own in reversed(kinds) if own & rarest}
    for gain, own in reversed(gains.items()):
        rest = _group(kinds, missing & ~gain, size - 1, steps)
        if rest is not None:
            return [own, *rest]
    return None
