"""What reading a layout gives, and what a layout is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_atlas.data.cases import Case, Split
from lightning_atlas.data.formats import BadFileError, segments
from lightning_atlas.data.survey.checks import Defect

SEGMENTED = (".nrrd", ".nhdr")
"""Endings of files that may hold segments with names."""
OF_LABELS = ("values", "ignore_value")
"""Facts of a case that say something of its labels only."""
Image = Path | Mapping[str, Path]


@dataclass
class LayoutResult:
    """The cases of a folder, and what a person should know of how they were found.

    Args:
        layout: Name of the layout.
        cases: One a scan; those that the dataset does not divide are `train`, those without labels `predict`.
        notes: Lines for a person: what was left out, and what to add.
        defects: Scans that could not become cases.
        unions: Name -> names whose union it is, for regions of nnU-Net that overlap.
        target_names: Names of the classes of whole images or of boxes, in the order of their numbers.
    """

    layout: str
    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    unions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    target_names: tuple[str, ...] = ()

    def add(
        self, subject: str, split: Split, image: Image, drawn: Mapping[str, Any] | Path | None, **facts: Any
    ) -> None:
        """Add a case, or the defect that keeps it from being one.

        Args:
            subject: Its name.
            split: Its split.
            image: File of the scan, or a file for each channel.
            drawn: File of its labels, whose segments are read by name; or the fields of the case that say where it is
                drawn; nothing makes it one to predict on.
            facts: Other fields of the case; `values` are for a file without names.
        """
        fields = {"label": drawn} if isinstance(drawn, Path) else dict(drawn or {})
        try:
            if isinstance(drawn, Path) and drawn.name.lower().endswith(SEGMENTED) and drawn.is_file():
                masks = segments(drawn)
                fields = {"masks": masks, "values": {}} if masks else fields
            if not fields:
                split, facts = "predict", {key: told for key, told in facts.items() if key not in OF_LABELS}
            self.cases.append(Case(subject, split, image, **{**facts, **fields}))
        except BadFileError as error:
            self.refuse(subject, error)
        except ValueError as error:
            self.refuse(subject, BadFileError(first_file(image), f"cannot be a case ({error})", "rename it"))

    def refuse(self, subject: str, error: BadFileError) -> None:
        """Add what keeps a subject from being a case."""
        self.defects.append(Defect(error.file, error.found, error.remedy, subject))

    def add_pairs(self, images: Mapping[str, Image], labels: Mapping[str, Path], split: Split, **facts: Any) -> None:
        """Add a case for each subject that has an image and a label, and a defect for each that lacks one."""
        for subject, image in images.items():
            if subject in labels:
                self.add(subject, split, image, labels[subject], **facts)
            else:
                found, remedy = f"has no label called {subject}", "add its label, or move the image away"
                self.defects.append(Defect(first_file(image), found, remedy, subject))
        for subject in sorted(set(labels) - set(images)):
            found, remedy = f"has no image called {subject}", "add its image, or move the label away"
            self.defects.append(Defect(labels[subject], found, remedy, subject))


@dataclass(frozen=True)
class Layout:
    """One way in which people lay scans out in folders.

    Args:
        name: What `--layout` takes.
        holds: What lies where, in a line.
        fits: Tells from names alone, or the beginning of a table, whether a folder or file is one.
        read: Lists its cases.
    """

    name: str
    holds: str
    fits: Callable[[Path], bool]
    read: Callable[[Path], LayoutResult]


def first_file(image: Image) -> Path:
    """Return the file of a scan, of several channels the first."""
    return image if isinstance(image, Path) else next(iter(image.values()))
