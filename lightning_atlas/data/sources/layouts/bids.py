"""BIDS with derivatives: `sub-*/[ses-*/]anat/*`, and `derivatives/*/sub-*/...` with `_dseg` and `_mask`.

Source: https://bids-specification.readthedocs.io, "Imaging derivatives": discrete segmentations and masks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_atlas.data.cases import Mark
from lightning_atlas.data.formats import stem
from lightning_atlas.data.sources.layouts.label_table import modality_of, read_labels
from lightning_atlas.data.sources.layouts.listing import folders, images, visible
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.tables import read_json, read_rows
from lightning_atlas.data.survey.checks import Defect

KINDS = {"anat": "MR", "ct": "CT", "pet": "PET"}
"""Folders of images -> modality, where the name does not say it."""


@dataclass(frozen=True)
class Named:
    """A file whose name is made of entities: `sub-01_ses-2_desc-liver_mask.nii.gz`."""

    file: Path

    @cached_property
    def entities(self) -> dict[str, str]:
        """Entity -> what it says: `{sub: 01, ses: 2, desc: liver}`."""
        return dict(part.split("-", 1) for part in self.file.name.split(".")[0].split("_") if "-" in part)

    @property
    def suffix(self) -> str:
        """The last part of the name: `T1w`, `dseg`, `mask`."""
        return self.file.name.split(".")[0].rpartition("_")[2]

    def covers(self, other: "Named") -> bool:
        """Tell whether everything that this name says, the other's says too."""
        return self.entities.items() <= other.entities.items()


@dataclass
class Drawn:
    """What the derivatives say of one image."""

    label: Path | None = None
    values: dict[str, int] = field(default_factory=dict)
    masks: dict[str, Mark] = field(default_factory=dict)

    @property
    def case_fields(self) -> dict[str, Any]:
        """The fields of the case; empty if nothing is drawn."""
        drawn = self.label is not None or self.masks
        return {"label": self.label, "values": self.values, "masks": self.masks} if drawn else {}

    def add(self, derivative: Named, notes: list[str]) -> None:
        """Take a mask, the first label map, or the structures of a further one."""
        values = {} if derivative.suffix == "mask" else _names(derivative)
        if derivative.suffix == "mask":
            name = derivative.entities.get("label") or derivative.entities.get("desc") or "mask"
            added = {name: Mark(derivative.file)}
        elif self.label is None:
            self.label, self.values, added = derivative.file, values, {}
        else:
            added = {name: Mark(derivative.file, value) for name, value in values.items()}
        if derivative.suffix == "dseg" and not values:
            notes.append(f"{derivative.file.name} has no names: add {stem(derivative.file)}.tsv with index and name")
        known = self.masks.keys() | self.values.keys()
        if twice := sorted(known & added.keys()):
            notes.append(f"{', '.join(twice)} in {derivative.file.name} is left out: another file has it too")
        self.masks |= {name: mark for name, mark in added.items() if name not in known}


def is_bids(path: Path) -> bool:
    """Tell whether there are folders of subjects with images in them."""
    return any(True for subject in _subjects(path) for _ in _files(subject))


def read_bids(path: Path) -> LayoutResult:
    """List each anatomical image as a case; its patient is the subject of BIDS.

    A label belongs to the image whose entities it has, `space-T1w` to the T1w image among these.
    """
    result = LayoutResult("bids")
    for subject in _subjects(path):
        scans = [Named(file) for file in _files(subject)]
        drawn = {scan.file: Drawn() for scan in scans}
        for label in _labels(path, subject.name):
            fitting = _fitting(label, scans)
            if len(fitting) == 1:
                drawn[fitting[0].file].add(label, result.notes)
            elif fitting:
                fits = ", ".join(scan.file.name for scan in fitting)
                remedy = f"name it after one of them: space-{fitting[0].suffix}"
                result.defects.append(Defect(label.file, f"fits several images: {fits}", remedy, subject.name))
            else:
                result.notes.append(f"{label.file.name} is left out: it is on the grid of no image of {subject.name}")
        for scan in scans:
            modality = modality_of({0: scan.suffix}) or KINDS[scan.file.parent.name]
            fields = drawn[scan.file].case_fields
            result.add(stem(scan.file), "train", scan.file, fields, modality=modality, patient=subject.name)
    return result


def _subjects(path: Path) -> list[Path]:
    return [folder for folder in folders(path) if folder.name.startswith("sub-")]


def _files(subject: Path) -> Iterator[Path]:
    for level in (subject, *(folder for folder in folders(subject) if folder.name.startswith("ses-"))):
        for kind in KINDS:
            yield from images(level / kind)


def _labels(path: Path, subject: str) -> Iterator[Named]:
    for pipeline in folders(path / "derivatives"):
        for file in _files(pipeline / subject):
            if (label := Named(file)).suffix in ("dseg", "mask"):
                yield label


def _fitting(label: Named, scans: Iterable[Named]) -> list[Named]:
    fitting = [scan for scan in scans if scan.covers(label)]
    if space := label.entities.get("space"):
        fitting = [scan for scan in fitting if space in (scan.suffix, "orig")]
    most = max((len(scan.entities) for scan in fitting), default=0)
    return [scan for scan in fitting if len(scan.entities) == most]


def _names(label: Named) -> dict[str, int]:
    """Read name -> value beside the label or in a folder above it, where names that say less hold for more files."""
    folder = label.file.parent
    while folder.name != "derivatives" and folder != folder.parent:
        for file in visible(folder):
            beside = file.suffix in (".tsv", ".json") and Named(file).suffix == "dseg" and Named(file).covers(label)
            if beside and (found := _table(file)):
                return found
        folder = folder.parent
    return {}


def _table(file: Path) -> dict[str, int]:
    if file.suffix == ".json":
        document = read_json(file)
        told = document.get("LabelMap") if isinstance(document, dict) else None
        return read_labels(file, {"labels": told}).values if told else {}
    rows = read_rows(file)
    if missing := {"index", "name"} - set(rows[0][1]):
        raise ValueError(f"{file} has no column {' and no column '.join(sorted(missing))}")
    return read_labels(file, {"labels": {row["name"]: row["index"] for _, row in rows}}).values


BIDS = Layout(
    "bids", "sub-NAME/anat/*.nii.gz and derivatives/PIPELINE/sub-NAME/anat/*_dseg or *_mask", is_bids, read_bids
)
