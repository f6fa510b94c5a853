"""What a dataset is like: grids, intensities and structures of its scans, and which of them differ from the others."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from lightning_atlas.data.cases import Case
from lightning_atlas.data.store.prepare import CASES_PER_PROCESS
from lightning_atlas.data.survey.fingerprint_case import LEVELS, CaseFingerprint, Intensities, Structure, measure

__all__ = ["CaseFingerprint", "Fingerprint", "Outlier", "fingerprint", "measure", "of_each"]

VERSION = 1
PICTURES = 12
"""Scans of which a slice is kept for the sheet."""
OUTLIER_MADS = 5.0
LEAST_MAD = 0.05
"""Median absolute deviations below this count as this: of logarithms, and of intensities in standard deviations."""
FEWEST = 5
"""Scans among which an outlier can be told."""
FIRST_FEW = 20
SHOWN = tuple(place for place, level in enumerate(LEVELS) if level not in (1, 99))
"""Percentiles in the printed table."""
MEASURED = {"shape": "voxels", "spacing_mm": "spacing, mm", "extent_mm": "field of view, mm"}
COUNTED = ("splits", "modalities", "orientations")
OUTLIERS = f"outliers, more than {OUTLIER_MADS:g} median absolute deviations from the median of their modality"


@dataclass(frozen=True)
class Outlier:
    """A scan that differs from the others of its modality.

    Args:
        subject: Which.
        what: In what.
        value: Its own value.
        median: The median of all.
        deviations: How many median absolute deviations lie between.
    """

    subject: str
    what: str
    value: float
    median: float
    deviations: float

    def __str__(self) -> str:
        far = f"{self.deviations:.0f}" if self.deviations < 100 else "over 100"
        return f"{self.subject}: {self.what} {self.value:.4g}, median {self.median:.4g} ({far} median deviations away)"


@dataclass(frozen=True)
class Fingerprint:
    """What a dataset is like.

    Args:
        cases: Each of its scans.
    """

    cases: tuple[CaseFingerprint, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every name on which somebody decided, in the order of the cases."""
        return tuple(dict.fromkeys(name for case in self.cases for name in case.structures))

    @property
    def modality(self) -> str | None:
        """The modality that all scans have; `None` where they differ or do not say."""
        found = {case.modality for case in self.cases}
        return found.pop() if len(found) == 1 else None

    def drawings(self, name: str) -> list[Structure]:
        """Return what was drawn of a structure, scan by scan."""
        return [case.structures[name] for case in self.cases if name in case.structures]

    @cached_property
    def outliers(self) -> tuple[Outlier, ...]:
        """Scans that differ: by more than `OUTLIER_MADS` median absolute deviations from the median of their modality.

        Compared are the logarithms of spacings and volumes, and the median intensity in standard deviations.
        """
        found: list[Outlier] = []
        for modality in dict.fromkeys(case.modality for case in self.cases):
            found += _outliers([case for case in self.cases if case.modality == modality])
        return tuple(found)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Distributions over the scans as plain data; three numbers are the least, the median and the largest."""
        cases = self.cases
        channels = {(case.modality, name): None for case in cases for name in case.channels}
        return {
            "scans": len(cases),
            "patients": len({(case.dataset, case.patient) for case in cases}),
            "splits": _counts(case.split for case in cases),
            "modalities": _counts(case.modality or "not declared" for case in cases),
            "orientations": _counts(case.orientation for case in cases),
            **{key: _along_axes([getattr(case, key) for case in cases]) for key in MEASURED},
            "levels": list(LEVELS),
            "intensities": {" ".join(filter(None, key)): self._intensities(*key) for key in channels},
            "structures": {name: _structure_summary(self.drawings(name)) for name in self.names},
            "outliers": [str(each) for each in self.outliers],
            "notes": [f"{case.subject}: {note}" for case in cases for note in case.notes],
        }

    def _intensities(self, modality: str | None, channel: str) -> dict[str, Any]:
        alike = [case for case in self.cases if case.modality == modality]
        found = [case.channels[channel] for case in alike if channel in case.channels]
        samples = {"everywhere": [each.everywhere for each in found], "inside": [each.inside for each in found]}
        return {place: _typical([each for each in given if each is not None]) for place, given in samples.items()}

    def report(self) -> list[str]:
        """Return a table for print."""
        told = self.summary
        counts = {key: ", ".join(f"{name} {n}" for name, n in told[key].items()) for key in COUNTED}
        grid = [["", "along", "least", "median", "largest"]]
        grid += [[what, axis, *map(_number, told[key][axis])] for key, what in MEASURED.items() for axis in "ijk"]
        names = [_intensity_line(channel, told["intensities"][channel]) for channel in told["intensities"]]
        levels = [f"{LEVELS[place]:g}%" for place in SHOWN]
        lines = [
            f"fingerprint of {told['scans']} scans of {told['patients']} patients ({counts['splits']})",
            f"modality: {counts['modalities']}",
            f"orientation as stored: {counts['orientations']}; below, i runs to the right, j to the front, k upwards",
            *_table(grid),
            "intensities, medians over the scans",
            *_table([["", *levels, "mean", "std"], *(line for lines in names for line in lines)]),
        ]
        if self.names:
            lines += [
                "structures; planes: drawn, median; thinnest: least side of the bounding box, median",
                *_table(self._structure_lines()),
            ]
        return lines + _listed(OUTLIERS, told["outliers"]) + _listed("notes", told["notes"])

    def _structure_lines(self) -> list[list[str]]:
        lines = [["", "drawn in", "present in", "planes", "least ml", "median ml", "largest ml", "thinnest mm"]]
        for name, told in self.summary["structures"].items():
            volumes = map(_number, told["volume_ml"] or (0, 0, 0))
            thinnest = _number(told["thinnest_mm"][1]) if told["thinnest_mm"] else "-"
            planes = _number(told["drawn_planes"][1])
            short = name if len(name) <= 32 else f"{name[:30]}.."
            lines.append([short, str(told["drawn_in"]), str(told["present_in"]), planes, *volumes, thinnest])
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: the summary and every case."""
        return {"version": VERSION, "summary": self.summary, "cases": [case.to_dict() for case in self.cases]}

    def write(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Fingerprint":
        """Read what `write` wrote; there are no pictures in it.

        Raises:
            ValueError: The file is no fingerprint of this version.
        """
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("version") if isinstance(values, dict) else None
        if version != VERSION or "cases" not in values:
            raise ValueError(f"{path} is no fingerprint of version {VERSION} (found {version}); measure again: prepare")
        return cls(tuple(CaseFingerprint.from_dict(each) for each in values["cases"]))


def fingerprint(cases: Sequence[Case], processes: int = 0, progress: bool = True) -> Fingerprint:
    """Measure every scan, with a bar.

    Args:
        cases: To measure; each is read once.
        processes: How many work side by side; 0 takes as many as there are processors, but one for few cases.
        progress: Show the bar.

    Raises:
        ValueError: There is no case, or one cannot be read.
    """
    if not cases:
        raise ValueError("there are no scans to measure")
    return Fingerprint(tuple(of_each(measure, cases, "fingerprint", processes, progress)))


def of_each(
    work: Callable[[Case, bool], Any], cases: Sequence[Case], what: str, processes: int, progress: bool
) -> list[Any]:
    """Return what a function makes of each case, in order; some cases it is told to keep a picture of.

    Args:
        work: The function.
        cases: Its arguments.
        what: Name of the bar.
        processes: How many work side by side; 0 takes as many as there are processors, but one for few cases.
        progress: Show the bar.
    """
    pictured = set(np.linspace(0, len(cases) - 1, min(PICTURES, len(cases))).astype(int).tolist())
    processes = processes or min(len(cases) // CASES_PER_PROCESS, os.cpu_count() or 1)
    found: list[Any] = [None] * len(cases)
    with tqdm(total=len(cases), desc=what, unit="scan", disable=not progress) as bar:
        if processes < 2:
            for number, case in enumerate(cases):
                found[number] = work(case, number in pictured)
                bar.update()
        else:
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                waiting = {pool.submit(work, case, n in pictured): n for n, case in enumerate(cases)}
                for done in as_completed(waiting):
                    found[waiting[done]] = done.result()
                    bar.update()
    return found


def _outliers(cases: Sequence[CaseFingerprint]) -> list[Outlier]:
    found: list[Outlier] = []
    for axis, letter in enumerate("ijk"):
        spacings = [case.spacing_mm[axis] for case in cases]
        found += _far_off(cases, f"spacing along {letter} (mm)", spacings, np.log(spacings))
    labelled = all(next(iter(case.channels.values())).inside for case in cases)
    samples = [case.middle if labelled else next(iter(case.channels.values())).everywhere for case in cases]
    medians = [each.percentiles[LEVELS.index(50)] for each in samples]
    spread = float(np.median([each.std for each in samples])) or 1.0
    found += _far_off(cases, "median intensity", medians, np.array(medians) / spread)
    for name in dict.fromkeys(name for case in cases for name in case.structures):
        having = [case for case in cases if name in case.structures and case.structures[name].volume_ml > 0]
        volumes = [case.structures[name].volume_ml for case in having]
        found += _far_off(having, f"volume of {name} (ml)", volumes, np.log(volumes))
    return found


def _far_off(
    cases: Sequence[CaseFingerprint], what: str, values: Sequence[float], scale: Float[np.ndarray, " cases"]
) -> list[Outlier]:
    if len(cases) < FEWEST:
        return []
    off = np.abs(scale - np.median(scale))
    deviations = off / max(float(np.median(off)), LEAST_MAD)
    median = float(np.median(values))
    return [
        Outlier(case.subject, what, float(value), median, float(far))
        for case, value, far in zip(cases, values, deviations, strict=True)
        if far > OUTLIER_MADS
    ]


def _structure_summary(drawings: Sequence[Structure]) -> dict[str, Any]:
    present = [each for each in drawings if each.volume_ml > 0]
    told: dict[str, Any] = {"drawn_in": len(drawings), "present_in": len(present)}
    told["drawn_planes"] = _spread([each.drawn_planes for each in drawings])
    for key in ("volume_ml", "thinnest_mm", "thinnest_voxels"):
        told[key] = _spread([getattr(each, key) for each in present]) if present else None
    return told


def _typical(samples: Sequence[Intensities]) -> dict[str, Any] | None:
    """Return the medians over scans."""
    if not samples:
        return None
    percentiles = np.median([each.percentiles for each in samples], axis=0).tolist()
    mean, std = (float(np.median([getattr(each, key) for each in samples])) for key in ("mean", "std"))
    return {"scans": len(samples), "percentiles": percentiles, "mean": mean, "std": std}


def _along_axes(values: Sequence[Sequence[int | float]]) -> dict[str, list[float]]:
    return {axis: _spread(column) for axis, column in zip("ijk", zip(*values, strict=True), strict=True)}


def _spread(values: Any) -> list[float]:
    return [float(each) for each in (np.min(values), np.median(values), np.max(values))]


def _counts(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _intensity_line(channel: str, told: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"{channel}, {place}",
            *(_number(each["percentiles"][n]) for n in SHOWN),
            _number(each["mean"]),
            _number(each["std"]),
        ]
        for place, each in told.items()
        if each is not None
    ]


def _table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            ["", line[0].ljust(widths[0]), *(word.rjust(w) for word, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]


def _listed(head: str, lines: Sequence[str]) -> list[str]:
    more = [f"  and {len(lines) - FIRST_FEW} more, in the JSON file"] if len(lines) > FIRST_FEW else []
    return [f"{head}:{'' if lines else ' none'}", *(f"  {line}" for line in lines[:FIRST_FEW]), *more]


def _number(value: int | float) -> str:
    if abs(value) >= 1e5:
        return f"{value:.2g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
