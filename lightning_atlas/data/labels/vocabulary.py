"""What the names of a dataset mean: which anatomy each covers, lies in, or is a part of.

Anatomy is divided into atoms (`vocabularies/anatomy.json`); a group such as `kidney` is the exact union of some. An
atom as drawn holds what lies within it, a liver its tumors. The files beside say what datasets mean by their names.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "vocabularies"
OPPOSITE = {"left": "right", "right": "left", "l": "r", "r": "l"}
SIDE = re.compile(r"(?<![a-z0-9])(left|right|l|r)(?![a-z0-9])", re.IGNORECASE)
ENTRY = {"value", "is", "of", "part_of", "without"}


@dataclass(frozen=True)
class Meaning:
    """What a name of a dataset is.

    Args:
        covers: Atoms whose exact union the name is. A name that is a part of an atom covers an atom of its own,
            `femur_left@abdomenatlas`, and nothing else.
        part_of: The atom of which the name is a strict part, so that outside the name nothing is known of the atom.
        within: Atoms in whose union every voxel of the name lies without being the same: an organ around its tumor.
        value: Its value in the dataset's label maps.
        without: Atoms that lie within what the name covers, but are left out of it and drawn under names of their own.
    """

    covers: frozenset[str]
    part_of: str | None = None
    within: frozenset[str] = frozenset()
    value: int | None = None
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Vocabulary:
    """The names of a dataset.

    Args:
        name: What it is called in recipes: `totalsegmentator_v2`.
        dataset: What stands behind the `@` of its own atoms; versions that share definitions share it.
        source: Where the names, values and definitions are from.
        modality: `CT` or `MR`; `None` where the dataset has both.
        names: The dataset's own names and what each means.
        order: The names in the order of the channels of the networks that were published with it.
        groups: Tasks into which the dataset's authors divide the names, in the order of their channels.
        disjoint: The names exclude each other in its files.
        note: What a user should know.
    """

    name: str
    dataset: str
    source: tuple[str, ...]
    modality: str | None
    names: Mapping[str, Meaning]
    order: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    disjoint: bool
    note: str = ""

    @property
    def values(self) -> dict[str, int]:
        """Name -> value in the dataset's label maps, for the names that have one."""
        return {name: each.value for name, each in self.names.items() if each.value is not None}

    def find(self, name: str) -> Meaning | None:
        """Return the meaning of a name in any spelling, or `None` where the dataset does not know it."""
        own = name if name in self.names else self._spellings.get(_spelling(name))
        if own is None and (meant := canonical(name)):
            own = self._spellings.get(meant)
        return None if own is None else self.names[own]

    @cached_property
    def _spellings(self) -> dict[str, str]:
        meant = {canonical(name): name for name in self.names}
        return {each: name for each, name in meant.items() if each} | {_spelling(name): name for name in self.names}


@dataclass(frozen=True)
class _Anatomy:
    """The contents of `anatomy.json`, words expanded to atoms."""

    atoms: frozenset[str]
    groups: dict[str, frozenset[str]]
    within: dict[str, frozenset[str]]
    overlaps: frozenset[frozenset[str]]
    spellings: dict[str, str]
    without_side: frozenset[str]
    without_counterpart: frozenset[str]
    sided: dict[tuple[str, str], str]


@cache
def _anatomy() -> _Anatomy:
    read = _read(FOLDER / "anatomy.json")
    atoms = {*read["atoms"], *(f"{pair}_{side}" for pair in read["pairs"] for side in ("left", "right"))}
    unions: dict[str, list[str]] = {pair: [f"{pair}_left", f"{pair}_right"] for pair in read["pairs"]} | read["groups"]

    def expand(words: Iterable[str]) -> frozenset[str]:
        return frozenset().union(*(expand(unions[word]) if word in unions else {word} for word in words))

    within = {atom: expand(outer) for inner, outer in read["within"].items() for atom in expand([inner])}
    shared = {
        frozenset((one, outer))
        for a, b in (pair[::step] for pair in read["overlaps"] for step in (1, -1))
        for one in expand([a])
        for other in expand([b])
        for outer in (other, *within.get(other, ()))
    }
    known = [*atoms, *unions]
    parted = {_parted(_spelling(word)): word for word in known}
    return _Anatomy(
        atoms=frozenset(atoms),
        groups={group: expand(words) for group, words in unions.items()},
        within=within,
        overlaps=frozenset(shared),
        spellings={_spelling(word): word for word in known} | read["aliases"],
        without_side=expand(read["without_side"]),
        without_counterpart=expand(read["without_counterpart"]),
        sided={key: word for key, word in parted.items() if key[1]},
    )


def canonical(name: str) -> str | None:
    """Return the atom or group that a name spells, or `None`: `Right Kidney`, `R_kidney` and `kidney_right` are one."""
    anatomy, spelled = _anatomy(), _spelling(name)
    if spelled in anatomy.spellings:
        return anatomy.spellings[spelled]
    rest, side = _parted(spelled)
    return anatomy.sided.get((anatomy.spellings.get(rest, rest), side))


def atoms_of(word: str) -> frozenset[str]:
    """Return the atoms whose union a word is; a word that anatomy does not know is an atom of its own.

    `femur@abdomenatlas` are the atoms of a femur in that dataset's own definition.
    """
    base, at, dataset = word.partition("@")
    known = canonical(base)
    atoms = frozenset({base}) if known is None else _anatomy().groups.get(known, frozenset({known}))
    return frozenset(f"{atom}@{dataset.lower()}" for atom in atoms) if at else atoms


def containers(atom: str) -> frozenset[str]:
    """Return the atoms in one of which every voxel of an atom lies: `kidney_tumor` in the left or the right kidney."""
    base, at, _ = atom.partition("@")
    return frozenset({base}) if at else _anatomy().within.get(atom, frozenset())


def overlapping(a: str, b: str) -> bool:
    """Tell whether a voxel may belong to both of two atoms; of atoms that anatomy does not know, any may."""
    a, b = (each.partition("@")[0] for each in (a, b))
    anatomy = _anatomy()
    if a == b or a not in anatomy.atoms or b not in anatomy.atoms:
        return True
    return b in containers(a) or a in containers(b) or frozenset((a, b)) in anatomy.overlaps


def meaning(name: str, vocabulary: Vocabulary | None = None) -> Meaning:
    """Return what a name means in a dataset, or in general where the dataset does not know it."""
    found = vocabulary.find(name) if vocabulary else None
    return found or _meant(atoms_of(name))


def side(name: str) -> str | None:
    """Return `left` or `right`; `None` for a name without a side, as that of a heart's left ventricle is."""
    base = name.partition("@")[0]
    known = canonical(base)
    if known in _anatomy().without_side:
        return None
    sides = [each.lower() for each in SIDE.findall(known or base)]
    return sides[0] if len(sides) == 1 and (known or len(sides[0]) > 1) else None


def mirror(name: str) -> str | None:
    """Return the name of the other side.

    `None` where there is none: for a name without a side, which a mirroring leaves as it is, and for one whose `side`
    has no counterpart (the left lung's upper lobe is two lobes on the right), which a mirroring cannot name.
    """
    base, at, dataset = name.partition("@")
    known = canonical(base)
    if side(name) is None or known in _anatomy().without_counterpart:
        return None
    other, swapped = SIDE.sub(_opposite, known or base), SIDE.sub(_opposite, base)
    return (swapped if known is None or canonical(swapped) == other else other) + at + dataset


def near(name: str, names: Sequence[str]) -> list[str]:
    """Return up to four names that may be meant: those that share an atom first, then those spelled alike."""
    wanted = atoms_of(name)
    same = [each for each in names if atoms_of(each) & wanted]
    spelled = {_spelling(each): each for each in names}
    close = [spelled[each] for each in get_close_matches(_spelling(name), spelled, n=4, cutoff=0.5)]
    return list(dict.fromkeys(same + close))[:4]


def vocabularies() -> list[str]:
    """Return the names of the vocabularies that the package carries."""
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "anatomy")


@cache
def load_vocabulary(name_or_path: str | Path) -> Vocabulary:
    """Return a vocabulary of the package, or one from a JSON file, which a process reads once.

    Raises:
        ValueError: There is none of that name, or the file is not one.
    """
    path = Path(name_or_path)
    if path.suffix == ".json":
        return _vocabulary(path)
    known = vocabularies()
    name = str(name_or_path).strip().lower().replace(" ", "_")
    if name not in known:
        close = [each for each in known if each.startswith(name)] or get_close_matches(name, known, n=4, cutoff=0.5)
        raise ValueError(
            f"no vocabulary is called {str(name_or_path)!r}; {'near' if close else 'there are'}: "
            f"{', '.join(close or known)}; or give a file of your own: NAMES.json"
        )
    return _vocabulary(FOLDER / f"{name}.json")


def _vocabulary(path: Path) -> Vocabulary:
    read = _read(path)
    if not isinstance(read.get("names"), dict) or not read["names"]:
        raise ValueError(f'{path} has no names; write {{"names": {{"liver": 1, "kidney": 2}}}}')
    dataset = str(read.get("dataset") or read.get("name") or path.stem).lower()
    names = {name: _entry(path, name, each, dataset) for name, each in read["names"].items()}
    for what in ("value", "part_of"):
        given = [found for each in names.values() if (found := getattr(each, what)) is not None]
        if twice := sorted({str(each) for each in given if given.count(each) > 1}):
            raise ValueError(f"{path}: {what} {', '.join(twice)} is given to two names; each needs one of its own")
    groups = {group: tuple(members) for group, members in read.get("groups", {}).items()}
    order = tuple(read.get("order", names))
    if strange := sorted({*order, *(each for group in groups.values() for each in group)} - set(names)):
        raise ValueError(f"{path}: order or groups name {', '.join(strange)}, which names does not have")
    return Vocabulary(
        name=str(read.get("name", path.stem)),
        dataset=dataset,
        source=tuple(read.get("source", ())),
        modality=read.get("modality"),
        names=names,
        order=order,
        groups=groups,
        disjoint=bool(read.get("disjoint", False)),
        note=str(read.get("note", "")),
    )


def _entry(path: Path, name: str, entry: Any, dataset: str) -> Meaning:
    said = entry if isinstance(entry, dict) else {"is": entry} if isinstance(entry, str) else {"value": entry}
    value = said.get("value")
    unlisted = any(not isinstance(said.get(each, []), list) for each in ("of", "without"))
    if said.keys() - ENTRY or len(said.keys() & {"is", "of", "part_of"}) > 1 or unlisted or "@" in name:
        raise ValueError(
            f'{path}: {name}: {entry!r}; write a value, or {{"value": 1, "is": "liver"}}, with one of is, part_of and '
            "of: [names], and without: [names]; a name has no @"
        )
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{path}: {name} has the value {value!r}; values are whole numbers above 0, or null for masks")
    without = frozenset().union(*map(atoms_of, said.get("without", ())))
    if "part_of" not in said:
        words = said.get("of", [said.get("is", name)])
        return _meant(frozenset().union(*map(atoms_of, words)), value, without)
    whole = atoms_of(said["part_of"])
    if len(whole) > 1:
        raise ValueError(f"{path}: {name} is part_of {said['part_of']}; of which of {', '.join(sorted(whole))}?")
    (atom,) = whole
    return Meaning(frozenset({f"{atom}@{dataset}"}), atom, whole, value, without)


def _meant(covers: frozenset[str], value: int | None = None, without: frozenset[str] = frozenset()) -> Meaning:
    return Meaning(covers, None, frozenset().union(*map(containers, covers)), value, without)


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} holds {type(read).__name__}, not an object")
    return read


def _spelling(name: str) -> str:
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_").replace("tumour", "tumor")


def _parted(spelled: str) -> tuple[str, str]:
    """Return a spelling without its side, and the side; no side where there is none or more than one."""
    words = spelled.split("_")
    sides = [word for word in words if word in OPPOSITE]
    if len(sides) != 1:
        return spelled, ""
    return "_".join(word for word in words if word not in OPPOSITE), {"l": "left", "r": "right"}.get(sides[0], sides[0])


def _opposite(found: re.Match[str]) -> str:
    word = found.group()
    other = OPPOSITE[word.lower()]
    return other.upper() if word.isupper() else other.title() if word.istitle() else other
