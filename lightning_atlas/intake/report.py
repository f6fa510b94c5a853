"""What became of each tensor of a file and of a network, for people to read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

SHOWN = 8
"""Lines that a printed report gives to each group."""


class Unmatched(NamedTuple):
    """A tensor on one side for which the other has none of that name and shape.

    Args:
        name: As on its own side.
        shape: Its own.
        other: The shape under the same name on the other side, if there is one.
    """

    name: str
    shape: tuple[int, ...]
    other: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.name} {_shape(self.shape)}" + ("" if self.other is None else f" (there {_shape(self.other)})")


class Reshaped(NamedTuple):
    """A tensor of which parts were taken over, or which was taken over in another shape.

    Args:
        source: Name in the file.
        name: Name in the network.
        how: What was taken and what was not.
        complete: Nothing of it was left as initialised.
    """

    source: str
    name: str
    how: str
    complete: bool


@dataclass
class IntakeReport:
    """What became of each tensor of a file and of a network; each is in exactly one list of its side.

    Args:
        origin: The file.
        prefix: What was dropped from the front of the file's names.
        added: What was put there.
        loaded: Names that are the same on both sides.
        renamed: Name in the file, name in the network.
        reshaped: Tensors of which parts were taken over, or which were taken over in another shape.
        fresh: Tensors of the network that stayed as initialised.
        left_over: Tensors of the file that nothing took.
        skipped: Names in the file that no network takes, and why.
        fresh_outputs: Names of the head's outputs that stayed as initialised; empty where they have no names.
        notes: What no name and no shape shows, and what changes the results.
        encoder_share: Share of the encoder's parameters, counted in numbers, that was loaded.
    """

    origin: str
    prefix: str = ""
    added: str = ""
    loaded: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    reshaped: list[Reshaped] = field(default_factory=list)
    fresh: list[Unmatched] = field(default_factory=list)
    left_over: list[Unmatched] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    fresh_outputs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    encoder_share: float = 0.0

    @property
    def fresh_names(self) -> set[str]:
        """Names in the network of all tensors that hold at least one number as initialised."""
        return {each.name for each in self.fresh} | {each.name for each in self.reshaped if not each.complete}

    def __str__(self) -> str:
        words = {"fresh": "fresh (new, as initialised)", "left_over": "left over (in the file, not used)"}
        groups = ["loaded", "renamed", "reshaped", "fresh", "left_over", *(["skipped"] if self.skipped else [])]
        counts = ", ".join(f"{len(getattr(self, group))} {words.get(group, group)}" for group in groups)
        lines = [f"tensors of {self.origin}: {counts}; {self.encoder_share:.1%} of the encoder's parameters"]
        if self.renamed:
            source, name = self.renamed[0]
            how = [f"{self.prefix!r} dropped" if self.prefix else "", f"{self.added!r} added" if self.added else ""]
            lines.append(f"  renamed    {', '.join(filter(None, how))}: {source} -> {name}" + rest(self.renamed, 1))
        lines += _group("reshaped", [f"{each.name} {each.how}" for each in self.reshaped])
        lines += _group("fresh", self.fresh)
        lines += _group("left over", self.left_over)
        for why in dict.fromkeys(self.skipped.values()):
            names = [name for name, reason in self.skipped.items() if reason == why]
            lines.append(f"  skipped    {names[0]}{rest(names, 1)}: {why}")
        return "\n".join(lines + [f"  note       {note}" for note in self.notes])


def some(entries: Sequence[Unmatched], shown: int = 3) -> str:
    """Return the first of some tensors and how many more there are."""
    return (", ".join(str(each) for each in entries[:shown]) or "nothing") + rest(entries, shown)


def rest(entries: Sequence[object], shown: int) -> str:
    """Return how many more than shown there are, as the end of a sentence."""
    return f" and {len(entries) - shown} more" if len(entries) > shown else ""


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _group(title: str, entries: Sequence[object]) -> list[str]:
    lines = [f"  {title:<10} {each}" for each in entries[:SHOWN]]
    return [*lines, f"  {title:<10}{rest(entries, SHOWN)}"] if len(entries) > SHOWN else lines
