"""Own data: a folder of scans with a folder of labels, or a table that names the files."""

import csv
import re
from pathlib import Path
from typing import cast, get_args

import numpy as np

from lightning_atlas.data.cases import Case, Source, Split

ENDINGS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".mhd")
CHANNEL_SUFFIX = "_0000"
"""What nnU-Net writes behind the names of images, not of labels."""


class ScanFolder(Source):
    """Scans in a folder, with labels of the same names in another.

    Args:
        images: Folder of scans (.nii .nii.gz .nrrd .mha .mhd).
        labels: Folder of labels; `null` for scans to predict on.
        values: Name of each structure and its value in the label files.
        modality: `CT`, `MR` or another short name.
        val_share: Share of the subjects for validation.
        test_share: Share of the subjects for testing.
        seed: Another seed splits otherwise.
    """

    def __init__(
        self,
        images: Path,
        labels: Path | None = None,
        values: dict[str, int] | None = None,
        modality: str | None = None,
        val_share: float = 0.2,
        test_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        if labels is not None and not values:
            raise ValueError(f"labels in {labels} need names: values: {{liver: 1, spleen: 2}}")
        if val_share < 0 or test_share < 0 or val_share + test_share > 1:
            raise ValueError(
                f"val_share {val_share} and test_share {test_share} must be from 0 to 1, and together at most 1"
            )
        self.images, self.labels = Path(images), None if labels is None else Path(labels)
        self.values = values or {}
        self.modality = modality
        self.val_share, self.test_share = val_share, test_share
        self.seed = seed

    def cases(self) -> list[Case]:
        """Return the scans in the order of their names, each with its label.

        Raises:
            ValueError: There are no scans, two are of one name, or one has no label.
        """
        images = scans(self.images, suffix=CHANNEL_SUFFIX)
        if self.labels is None:
            return [Case(name, "predict", path, modality=self.modality) for name, path in images.items()]
        labels = scans(self.labels)
        if lonely := sorted(set(images) ^ set(labels)):
            sides = [f"{name} in {self.labels if name in images else self.images}" for name in lonely[:8]]
            raise ValueError(
                f"each scan needs a label file of its name, and each label a scan; missing: {', '.join(sides)}"
            )
        splits = dict(zip(images, self._splits(len(images)), strict=True))
        return [
            Case(name, splits[name], path, labels[name], self.values, modality=self.modality)
            for name, path in images.items()
        ]

    @property
    def description(self) -> str:
        """One line for reports."""
        return f"scans in {self.images.name}"

    def _splits(self, number: int) -> list[Split]:
        order = np.random.default_rng(np.random.SeedSequence([self.seed])).permutation(number)
        splits: list[Split] = ["train"] * number
        test = round(number * self.test_share)
        for place in order[:test]:
            splits[place] = "test"
        for place in order[test : test + round(number * self.val_share)]:
            splits[place] = "val"
        return splits


class ScanTable(Source):
    """Scans that a CSV table names, one a line.

    Columns: `subject`, `split` (train, val, test or predict), `image`, `label` (may be empty), and if wanted `drawn`
    (names with `;` between them) and `drawn_planes` (numbers likewise). Relative paths start at the table.

    Args:
        path: The table.
        values: Name of each structure and its value in the label files.
        modality: `CT`, `MR` or another short name.
        ignore_value: Value of voxels on which nobody decided.
    """

    def __init__(
        self,
        path: Path,
        values: dict[str, int] | None = None,
        modality: str | None = None,
        ignore_value: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.values = values or {}
        self.modality = modality
        self.ignore_value = ignore_value

    def cases(self) -> list[Case]:
        """Return the lines in order.

        Raises:
            ValueError: A column or a file is missing, or a split has no such name.
        """
        if not self.path.is_file():
            raise ValueError(f"there is no table {self.path} (seen from {Path.cwd()})")
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
        missing = {"subject", "split", "image"} - set(lines[0] if lines else ())
        if missing:
            raise ValueError(f"{self.path} has no column {', '.join(sorted(missing))}, or no line")
        return [self._case(number, line) for number, line in enumerate(lines, start=2)]

    @property
    def description(self) -> str:
        """One line for reports."""
        return f"scans of {self.path.name}"

    def _case(self, number: int, line: dict[str, str]) -> Case:
        split = (line["split"] or "").strip()
        if split not in get_args(Split):
            raise ValueError(f"{self.path}, line {number}: split {split!r} is none of {', '.join(get_args(Split))}")
        drawn, planes = _listed(line.get("drawn")), _listed(line.get("drawn_planes"))
        label = (line.get("label") or "").strip()
        return Case(
            line["subject"].strip(),
            cast(Split, split),
            self._file(number, line["image"].strip()),
            self._file(number, label) if label else None,
            self.values if label else {},
            modality=self.modality,
            drawn=drawn,
            drawn_planes=None if planes is None else tuple(int(plane) for plane in planes),
            ignore_value=self.ignore_value,
        )

    def _file(self, number: int, name: str) -> Path:
        path = self.path.parent / name
        if not path.is_file():
            raise ValueError(f"{self.path}, line {number}: there is no file {path}")
        return path


def scans(folder: Path, suffix: str = "") -> dict[str, Path]:
    """Return name -> file of every scan in a folder, in the order of the names.

    Raises:
        ValueError: There is no such folder, no scan in it, or two of one name.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((each for each in ENDINGS if path.name.lower().endswith(each)), None)
        if ending is None or path.name.startswith("."):
            continue
        name = path.name[: -len(ending)]
        if suffix and re.search(r"_000[1-9]$", name):
            raise ValueError(f"{path} is a second channel by its name; scans are one channel so far")
        name = name.removesuffix(suffix)
        if name in found:
            raise ValueError(f"two scans are called {name}: {found[name].name} and {path.name} in {folder}")
        found[name] = path
    if not found:
        raise ValueError(f"no scans in {folder}; scans end in {' '.join(ENDINGS)}")
    return found


def _listed(text: str | None) -> tuple[str, ...] | None:
    return tuple(each.strip() for each in text.split(";") if each.strip()) if text and text.strip() else None
