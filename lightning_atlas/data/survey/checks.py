"""Check whole datasets: every defect in one pass, each in one line with its file and its remedy."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lightning_atlas.data.cases import Case
from lightning_atlas.data.sources.splits import apart
from lightning_atlas.data.survey.damage import Defect, Finding, Inspection, Note, drawings, inspect_case, is_crop

__all__ = ["Defect", "Note", "Report", "check_case", "check_cases", "inspect_case"]


@dataclass(frozen=True)
class Report:
    """What was found in a dataset.

    Args:
        cases: How many were looked at.
        defects: What has to be mended, case by case, then what lies between cases.
        notes: What is sound, but worth a line.
    """

    cases: int
    defects: tuple[Defect, ...]
    notes: tuple[Note, ...]

    @property
    def bad_subjects(self) -> frozenset[str]:
        """Subjects without whom the rest is sound."""
        return frozenset(defect.subject for defect in self.defects)

    def __str__(self) -> str:
        subjects = len(self.bad_subjects)
        summary = f"{self.cases} cases: {len(self.defects)} defects in {subjects} of them, {len(self.notes)} notes"
        return "\n".join([*map(str, self.defects), *(f"note: {note}" for note in self.notes), summary])


def check_case(case: Case) -> list[Finding]:
    """Return all that is wrong or unusual about one case; its files are read once, a chunk at a time."""
    return inspect_case(case).findings


def check_cases(cases: Sequence[Case], workers: int = 0, progress: Callable[[int, int], None] | None = None) -> Report:
    """Return all that is wrong or unusual about a dataset.

    Args:
        cases: Its cases.
        workers: Threads that read; inflating and hashing run beside each other. 0 reads in the calling thread.
        progress: Called with the number of cases that are done, and of all.
    """
    inspections: list[Inspection] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for inspection in pool.map(inspect_case, cases) if workers else map(inspect_case, cases):
            inspections.append(inspection)
            if progress is not None:
                progress(len(inspections), len(cases))
    return report_on(cases, inspections)


def report_on(cases: Sequence[Case], inspections: Sequence[Inspection]) -> Report:
    """Return what was found in each case, and what lies between cases.

    Args:
        cases: Of a dataset.
        inspections: One for each of them.
    """
    findings = [finding for inspection in inspections for finding in inspection.findings]
    findings += [*_named_twice(cases), *_leaks(cases), *_same_scans(cases, inspections), *_in_both_roles(cases)]
    defects = tuple(finding for finding in findings if isinstance(finding, Defect))
    return Report(len(cases), defects, tuple(finding for finding in findings if isinstance(finding, Note)))


def _file(case: Case) -> Path:
    return next(iter(case.channels.values()))


def _named_twice(cases: Sequence[Case]) -> Iterator[Defect]:
    seen: dict[str, int] = {}
    for place, case in enumerate(cases):
        first = cases[seen.setdefault(case.subject.casefold(), place)]
        if seen[case.subject.casefold()] != place:
            found = f"is called {case.subject!r}, and {_file(first)} is called {first.subject!r}"
            remedy = "give each subject a name of its own; capital letters make no difference to some disks"
            yield Defect(_file(case), found, remedy, case.subject)


def _leaks(cases: Sequence[Case]) -> Iterator[Finding]:
    """Find patients in two splits."""
    seen: dict[tuple[str, str], Case] = {}
    for case in _learnt_from(cases):
        first = seen.setdefault((case.dataset, (case.patient or case.subject).casefold()), case)
        if first.split == case.split or first.subject.casefold() == case.subject.casefold():
            continue
        if apart(first, case):
            yield Note(_file(case), f"is split by planes: {first.split} and {case.split}", case.subject)
            continue
        found = f"is in {case.split}, and {_file(first)} of the same patient is in {first.split}"
        yield Defect(_file(case), found, "put all scans of a patient into one split", case.subject)


def _same_scans(cases: Sequence[Case], inspections: Sequence[Inspection]) -> Iterator[Defect]:
    """Find scans with the same voxels under two names."""
    digests = {case.subject: tuple(each.digests.values()) for case, each in zip(cases, inspections, strict=True)}
    seen: dict[tuple[str, ...], Case] = {}
    for case in _learnt_from(cases):
        if len(digests[case.subject]) < len(case.channels):
            continue  # damaged, and said so
        first = seen.setdefault(digests[case.subject], case)
        if first is case or first.subject == case.subject or apart(first, case):
            continue
        found = f"holds the same voxels as {_file(first)} ({case.subject} and {first.subject})"
        yield Defect(_file(case), found, "keep one of the two, or name the right file", case.subject)


def _in_both_roles(cases: Sequence[Case]) -> Iterator[Defect]:
    scans = {path.absolute(): case for case in cases for path in case.channels.values()}
    for case in cases:
        for path in drawings(case):
            other = scans.get(path.absolute())
            if other and not (other is case and is_crop(path)):
                found = f"is a scan (of {other.subject}) and a drawing (of {case.subject}) at once"
                yield Defect(path, found, "name the right file for each", case.subject)


def _learnt_from(cases: Sequence[Case]) -> Iterator[Case]:
    """Yield the cases that may leak; simulated subjects share a scan on purpose."""
    yield from (case for case in cases if case.variation is None and case.split != "predict")
