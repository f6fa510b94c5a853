"""Classes that each source numbers for itself, numbered once for a run, by their names."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from lightning_atlas.data.cases import Case, Source
from lightning_atlas.data.sources.folder import ScanLayout, sound
from lightning_atlas.data.sources.mixture import Mixture

Names = tuple[str, ...]
"""Of classes, in the order of a source's numbers; none where it only has numbers."""
NONE = -1
"""Place of a name that is not among the classes."""


class Part(NamedTuple):
    """What one source lists.

    Args:
        cases: Its cases.
        names: Of the classes that it numbers.
        notes: What a person should know of its files.
    """

    cases: list[Case]
    names: Names
    notes: Sequence[str] = ()


class Numbered(Source):
    """A source whose classes, of whole images and of boxes, go by their names.

    The source, or each of a `Mixture`, may have the classes in any order, and not all of them. The numbers of one that
    does not name its classes are places in `classes`.

    Args:
        source: Lists the cases.
        classes: Names in the order of their numbers; `None` takes those of the source, of a `Mixture` in the order in
            which they first stand in its datasets.
    """

    def __init__(self, source: Source, classes: Sequence[str] | None = None) -> None:
        self.source = source
        self.classes = tuple(classes or ())
        self.names: Names = self.classes
        self.notes: list[str] = []

    def cases(self) -> list[Case]:
        """Return the cases with the numbers of this source, and keep the names of these, and what was noted of files.

        Raises:
            ValueError: A case is of a class that is none of `classes`, or has a number that nobody names.
        """
        parts = _parts(self.source)
        self.names = self.classes or tuple(dict.fromkeys(name for part in parts for name in part.names))
        self.notes = [note for part in parts for note in part.notes]
        known = {name: place for place, name in enumerate(self.names)}
        result: list[Case] = []
        for cases, own, _ in parts:
            places = [known.get(name, NONE) for name in own]
            self._check(cases, own, places)
            kept = places == list(range(len(own)))
            result += cases if kept else [_renumbered(case, places) for case in cases]
        return result

    @property
    def description(self) -> str:
        """One line for reports."""
        return self.source.description

    def _check(self, cases: Sequence[Case], own: Names, places: Sequence[int]) -> None:
        if NONE in places:
            held = dict.fromkeys(each for case in cases for each in _numbers(case))
            if strange := [own[each] for each in held if places[each] == NONE]:
                shown = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
                raise ValueError(
                    f"{self.description}: there are images of {', '.join(strange[:8])}, which the classes ({shown}) do "
                    "not have: add it to data.init_args.classes (or to the names of targets), or take them out"
                )
        if self.names and not self.classes and not own:
            nameless = (case.subject for case in cases if _numbers(case))
            if subject := next(nameless, None):
                raise ValueError(
                    f"{self.description}: other datasets name their classes, and that of {subject} is a number only: "
                    "set data.init_args.classes, in the order of such numbers from 0"
                )


def _parts(source: Source) -> list[Part]:
    """Return the cases in parts, each with the names of the classes that its source numbers."""
    if isinstance(source, Mixture):
        parts = [_parts(each) for each in source.datasets.values()]
        joined = iter(source.joined([[case for part in some for case in part.cases] for some in parts]))
        return [part._replace(cases=list(islice(joined, len(part.cases)))) for some in parts for part in some]
    if isinstance(source, ScanLayout):
        result = source.read()
        return [Part(sound(result), result.target_names, result.notes)]
    cases = source.cases()
    return [Part(cases, tuple(getattr(source, "names", ())))]


def _numbers(case: Case) -> list[int]:
    """Return the numbers of the classes of a case and of its boxes; one below 0 means: not known."""
    whole = [case.target] if isinstance(case.target, int) and case.target >= 0 else []
    return [*whole, *(_class_of(box) for box in case.boxes)]


def _renumbered(case: Case, places: Sequence[int]) -> Case:
    """Return a case with the numbers that stand in the places of its own."""
    target = case.target
    if isinstance(target, int) and target >= 0:
        target = places[target]
    boxes = tuple((*box[:6], float(places[_class_of(box)])) for box in case.boxes)
    return replace(case, target=target, boxes=boxes)


def _class_of(box: Sequence[float]) -> int:
    return int(box[6]) if len(box) > 6 else 0
