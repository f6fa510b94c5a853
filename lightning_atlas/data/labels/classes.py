"""From a dataset's own names to a recipe's classes: arithmetic on tables, never on voxels.

A class is a union of atoms (see `vocabulary.py`), and so is a name of a dataset. What a voxel's own names say of the
classes follows from which atoms they share, which lie in which, and which exclude each other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int8

from lightning_atlas.data.labels.vocabulary import (
    Meaning,
    atoms_of,
    canonical,
    containers,
    load_vocabulary,
    meaning,
    near,
    overlapping,
)

Atoms = frozenset[str]


@dataclass(frozen=True)
class Table:
    """What each row says of the recipe's classes; see `lightning_atlas.types` for the three arrays."""

    states: Int8[np.ndarray, "rows classes"]
    drawn: Bool[np.ndarray, "rows classes"]
    background: Int8[np.ndarray, " rows"]


@dataclass(frozen=True)
class Classes:
    """What the network tells apart.

    Args:
        names: Class -> names or patterns such as `rib_*` in the datasets, merged; `null` makes each name a class.
        exclusive: Each voxel is in one class at most (softmax): a class that contains another is read without it.
        assume_equal: Names of a dataset that are a part of what the recipe wants, to be taken for the whole.
        template: Instead of `names`: a vocabulary, or one of its groups as `totalsegmentator_v1/organs`; its names, in
            the order of the channels of the networks that were published with it, spelled as everywhere here.
    """

    names: dict[str, list[str]] | None = None
    exclusive: bool = True
    assume_equal: list[str] = field(default_factory=list)
    template: str | None = None

    def __post_init__(self) -> None:
        if self.names is not None and self.template is not None:
            raise ValueError(f"classes: give names or a template, and found both; is it {self.template}?")


@dataclass(frozen=True)
class ClassMap:
    """A recipe's classes as unions of atoms.

    Args:
        atoms: Class -> the atoms whose union it is.
        exclusive: As in `Classes`.
        assume_equal: As in `Classes`.
    """

    atoms: dict[str, Atoms]
    exclusive: bool = True
    assume_equal: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in order."""
        return tuple(self.atoms)

    def table(
        self,
        states: Int8[np.ndarray, "rows names"],
        drawn: Bool[np.ndarray, "rows names"],
        names: Sequence[str],
        vocabulary: str | None = None,
    ) -> Table:
        """Take a case's table from its own names to the classes.

        Args:
            states: In the dataset's own names.
            drawn: Likewise.
            names: The columns of both.
            vocabulary: What the names mean.
        """
        rows = _Rows(states, drawn, tuple(self.meaning(name, vocabulary) for name in names))
        union = frozenset().union(*self.atoms.values()) if self.atoms else frozenset()
        columns = [(rows.state(atoms), rows.drawn_all(atoms)) for atoms in self.atoms.values()]
        empty = np.zeros((len(states), 0))
        class_states = np.stack([state for state, _ in columns], 1) if columns else empty.astype(np.int8)
        class_drawn = np.stack([decided for _, decided in columns], 1) if columns else empty.astype(bool)
        outside = (class_states == 0).all(1) & bool(columns)
        background = np.where(rows.inside(union), 0, np.where(outside, 1, -1)).astype(np.int8)
        if self.exclusive:
            self._take_out_contained(class_states, class_drawn)
        return Table(class_states, class_drawn, background)

    def meaning(self, name: str, vocabulary: str | None) -> Meaning:
        """Return what a dataset's own name means in this recipe."""
        found = meaning(name, None if vocabulary is None else load_vocabulary(vocabulary))
        whole = frozenset().union(*map(atoms_of, self.assume_equal))
        if found.part_of is not None and (found.part_of in whole or name in self.assume_equal):
            return replace(found, covers=frozenset({found.part_of}), part_of=None, within=containers(found.part_of))
        return found

    def undecided(self, names: Sequence[str], vocabulary: str | None) -> dict[str, str]:
        """Return class -> why no voxel of this dataset tells it: not drawn, drawn in part, drawn undivided."""
        meanings = {name: self.meaning(name, vocabulary) for name in names}
        told = {}
        for each, atoms in self.atoms.items():
            exact = frozenset().union(*(one.covers for one in meanings.values() if one.covers <= atoms))
            if missing := atoms - exact:
                parts = [name for name, one in meanings.items() if one.part_of in missing]
                coarse = [name for name, one in meanings.items() if one.covers & missing]
                told[each] = (
                    f"{', '.join(parts)} is only a part of it"
                    if parts
                    else f"{', '.join(coarse)} holds more than it"
                    if coarse
                    else "nobody drew it"
                    if missing == atoms
                    else f"nobody drew {', '.join(sorted(missing))}"
                )
        return told

    @cached_property
    def contained(self) -> list[tuple[int, int]]:
        """Pairs (container, contained) of classes by number, innermost last."""
        sets = list(self.atoms.values())
        return [
            (outer, inner)
            for outer in range(len(sets))
            for inner in range(len(sets))
            if outer != inner and sets[inner] and _lies_in(sets[inner], sets[outer])
        ]

    def conflicts(self, states: Int8[np.ndarray, "rows classes"]) -> list[tuple[str, str]]:
        """Return pairs of classes that share a row though each voxel may be in one only."""
        if not self.exclusive:
            return []
        rows, columns = np.nonzero(states == 1)
        pairs = {(a, b) for row in np.unique(rows) for a in columns[rows == row] for b in columns[rows == row] if a < b}
        return [(self.names[a], self.names[b]) for a, b in sorted(pairs)]

    def _take_out_contained(
        self, states: Int8[np.ndarray, "rows classes"], drawn: Bool[np.ndarray, "rows classes"]
    ) -> None:
        whole, decided = states.copy(), drawn.copy()
        for outer, inner in self.contained:
            states[:, outer] = np.where(whole[:, inner] == 1, 0, states[:, outer])
            maybe = (whole[:, inner] == -1) & (states[:, outer] == 1)
            states[:, outer] = np.where(maybe, -1, states[:, outer])
            drawn[:, outer] &= decided[:, inner]


@dataclass(frozen=True)
class _Rows:
    """A case's table with the meaning of its columns."""

    states: Int8[np.ndarray, "rows names"]
    drawn: Bool[np.ndarray, "rows names"]
    meanings: tuple[Meaning, ...]

    def state(self, atoms: Atoms) -> Int8[np.ndarray, " rows"]:
        """Return 1, 0 or -1 of a union of atoms."""
        outside = np.full(len(self.states), bool(atoms))
        for atom in atoms:
            outside &= self.outside(atom)
        return np.where(self.inside(atoms), 1, np.where(outside, 0, -1)).astype(np.int8)

    def inside(self, atoms: Atoms) -> Bool[np.ndarray, " rows"]:
        """Tell where a voxel is known to be in the union."""
        columns = [n for n, each in enumerate(self.meanings) if _lies_in(each.covers, atoms)]
        return (self.states[:, columns] == 1).any(axis=1)

    def outside(self, atom: str) -> Bool[np.ndarray, " rows"]:
        """Tell where a voxel is known not to be in an atom."""
        out = self._named_outside(atom)
        if around := containers(atom):
            out = out | np.logical_and.reduce([self.outside(each) for each in around])
        return out

    def drawn_all(self, atoms: Atoms) -> Bool[np.ndarray, " rows"]:
        """Tell where somebody decided on every atom, by names that hold nothing else."""
        result = np.full(len(self.states), bool(atoms))
        for atom in atoms:
            decided = np.zeros(len(self.states), dtype=bool)
            for n, each in enumerate(self.meanings):
                if atom in each.covers and each.covers <= atoms:
                    decided |= self.drawn[:, n] & (self.drawn_all(each.without) if each.without else True)
            result &= decided
        return result

    def _named_outside(self, atom: str) -> Bool[np.ndarray, " rows"]:
        out = np.zeros(len(self.states), dtype=bool)
        for n, each in enumerate(self.meanings):
            if atom in each.covers:
                left_out = [self._named_outside(other) for other in each.without]
                out |= (self.states[:, n] == 0) & np.logical_and.reduce(left_out, axis=0, initial=True)
            elif atom in each.without or not any(overlapping(atom, other) for other in each.covers):
                out |= self.states[:, n] == 1
        return out


def match_classes(
    datasets: Iterable[tuple[Sequence[str], str | None]], wanted: Classes | Mapping[str, Sequence[str]] | None
) -> ClassMap:
    """Resolve a recipe's classes.

    Args:
        datasets: The names of each dataset, and its vocabulary.
        wanted: What the recipe says.

    Raises:
        ValueError: A word means nothing in any dataset, or exclusive classes share an atom.
    """
    if not isinstance(wanted, Classes):
        wanted = Classes(None if wanted is None else {name: _as_list(name, words) for name, words in wanted.items()})
    known: dict[str, Atoms] = {}
    for names, vocabulary in datasets:
        loaded = None if vocabulary is None else load_vocabulary(vocabulary)
        for name in names:
            covers = meaning(name, loaded).covers
            known[name] = covers if known.get(name, covers) == covers else atoms_of(name)
    if wanted.template is not None:
        atoms = template_classes(wanted.template)
    elif wanted.names is None:
        atoms = known
    else:
        atoms = {name: _union(name, words, known) for name, words in wanted.names.items()}
    result = ClassMap(atoms, wanted.exclusive, tuple(wanted.assume_equal))
    _check_shared(result)
    return result


def template_classes(template: str) -> dict[str, Atoms]:
    """Return the classes of a vocabulary or of one of its groups, in the order of its published channels.

    Args:
        template: `abdomenatlas_1.1`, or with a group `abdomenatlas_1.1/organs`.

    Raises:
        ValueError: There is no such vocabulary or group.
    """
    name, _, group = template.partition("/")
    vocabulary = load_vocabulary(name)
    if group and group not in vocabulary.groups:
        groups = ", ".join(f"{name}/{each}" for each in vocabulary.groups) or "none"
        raise ValueError(f"classes: {name} has no group {group!r}; it has {groups}")
    covered = [(each, vocabulary.names[each].covers) for each in vocabulary.groups.get(group, vocabulary.order)]
    return {_class_name(each, atoms): atoms for each, atoms in covered}


def _class_name(name: str, atoms: Atoms) -> str:
    """Return the one word of anatomy for these atoms, or else the dataset's own."""
    word = canonical(name)
    return next(iter(atoms)) if len(atoms) == 1 else word if word and atoms_of(word) == atoms else name


def _union(name: str, words: Sequence[str], known: Mapping[str, Atoms]) -> Atoms:
    found: set[str] = set()
    spelt = {atom: frozenset({atom}) for atoms in known.values() for atom in atoms} | dict(known)
    for word in words:
        matching = [atoms for each, atoms in spelt.items() if fnmatchcase(each, word)]
        if word not in spelt and not set("*?[") & set(word) and canonical(word.partition("@")[0]):
            matching = [atoms_of(word)]
        if not matching:
            close = near(word, list(spelt)) or list(spelt)[:8]
            raise ValueError(f"classes: {name}: nothing is called {word!r} in this dataset; near: {', '.join(close)}")
        found.update(*matching)
    return frozenset(found)


def _check_shared(classes: ClassMap) -> None:
    owner: dict[str, str] = {}
    for name, atoms in classes.atoms.items() if classes.exclusive else ():
        for atom in sorted(atoms):
            if owner.setdefault(atom, name) != name:
                raise ValueError(
                    f"classes: {atom} would belong to {owner[atom]} and to {name}, but classes exclude each other; "
                    "take it out of one of them"
                )


def _lies_in(inner: Atoms, outer: Atoms) -> bool:
    """Tell whether every voxel of a union of atoms is in another, for all that anatomy says."""
    return bool(inner) and all(
        atom in outer or (bool(containers(atom)) and _lies_in(containers(atom), outer)) for atom in inner
    )


def _as_list(name: str, words: Sequence[str]) -> list[str]:
    if isinstance(words, str):
        raise ValueError(f"classes: {name} needs a list of names, not {words!r}; write {name}: [{words}]")
    return list(words)
