"""Several datasets in one run, each with its own vocabulary."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lightning_atlas.data.cases import Case, Source


class Mixture(Source):
    """The cases of several sources; `Patches.shares` says how often each is drawn from.

    Args:
        datasets: Name -> source. The name is put before the subjects' where two of them are called alike.
    """

    def __init__(self, datasets: Mapping[str, Source]) -> None:
        self.datasets = datasets

    def cases(self) -> list[Case]:
        """Return the cases of each source in turn."""
        return self.joined([source.cases() for source in self.datasets.values()])

    def joined(self, parts: Sequence[Sequence[Case]]) -> list[Case]:
        """Return the cases of all sources in turn, given those of each."""
        listed = [
            replace(case, dataset=name, patient=case.patient or case.subject)
            for name, part in zip(self.datasets, parts, strict=True)
            for case in part
        ]
        called = Counter(case.subject.casefold() for case in listed)
        return [
            case if called[case.subject.casefold()] == 1 else replace(case, subject=f"{case.dataset}-{case.subject}")
            for case in listed
        ]

    @property
    def description(self) -> str:
        """One line for reports: each source's own."""
        return " + ".join(source.description for source in self.datasets.values())
