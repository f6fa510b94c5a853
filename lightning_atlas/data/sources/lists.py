"""Cases as a publication lists them: the subjects of each split, in text files or by name; patients by these names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import cast, get_args

from lightning_atlas.data.cases import Case, Split
from lightning_atlas.data.sources.splits import check_leaks


def listed(cases: Sequence[Case], lists: Mapping[str, Path | list[str]]) -> list[Case]:
    """Return the cases that lists name, each in the split of its list, in their former order.

    A list is the subjects' names, or a file with a subject a line; what stands there behind a tabulator, and lines that
    start with `#`, are not read.

    Args:
        cases: Of a source.
        lists: Split -> its list.

    Raises:
        ValueError: There is no such split, a list names a subject that is not there or that another list has, or a
            patient is in two splits.
    """
    if strange := sorted(set(lists) - set(get_args(Split))):
        raise ValueError(f"lists: there is no split {strange[0]!r}; write {{train: FILE, val: FILE, test: FILE}}")
    chosen: dict[str, str] = {}
    for split, given in lists.items():
        for subject in given if isinstance(given, list) else _read(Path(given)):
            if chosen.setdefault(subject, split) != split:
                places = [
                    split if isinstance(lists[split], list) else lists[split] for split in (split, chosen[subject])
                ]
                raise ValueError(f"lists: {places[0]} has {subject}, which {places[1]} has too")
    known = {case.subject for case in cases}
    if missing := [subject for subject in chosen if subject not in known]:
        near = get_close_matches(missing[0], known, n=1)
        raise ValueError(
            f"lists: {len(missing)} of {len(chosen)} subjects are not there: {', '.join(missing[:3])}"
            + (f" (near: {near[0]})" if near else "")
        )
    found = [replace(case, split=cast(Split, chosen[case.subject])) for case in cases if case.subject in chosen]
    check_leaks(found)
    return found


def of_patients(cases: Sequence[Case], pattern: str) -> list[Case]:
    r"""Return the cases with the patient that a part of each subject's name is.

    Args:
        cases: Of a source.
        pattern: A regular expression for whole names; its one group is the patient: `(P\d+)_.*`.

    Raises:
        ValueError: It is none, or a name is not of that kind.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient: {pattern!r} is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise ValueError(f"patient: {pattern!r} has {compiled.groups} groups; put brackets around the patient's part")
    found = {case.subject: compiled.fullmatch(case.subject) for case in cases}
    if strange := [subject for subject, match in found.items() if match is None]:
        raise ValueError(f"patient: {pattern!r} does not fit {len(strange)} subjects, such as {strange[0]}")
    return [replace(case, patient=match[1] if (match := found[case.subject]) else None) for case in cases]


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"lists: {path} cannot be read: {error}") from error
    subjects = [line.partition("\t")[0].strip() for line in lines if not line.startswith("#")]
    return [subject for subject in dict.fromkeys(subjects) if subject]
