"""Own data: a folder of scans with one of labels, a folder in any known layout, or a table that names the files."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lightning_atlas.data.cases import Case, DrawnOn, Source
from lightning_atlas.data.labels.vocabulary import load_vocabulary
from lightning_atlas.data.sources.layouts import LayoutResult, read_layout
from lightning_atlas.data.sources.layouts.listing import by_channel, scans
from lightning_atlas.data.sources.lists import listed, of_patients
from lightning_atlas.data.sources.manifest import present, read_manifest
from lightning_atlas.data.sources.splits import Splits
from lightning_atlas.data.sources.tables import read_rows


class ScanFolder(Source):
    """Scans in a folder, with labels of the same names in another.

    Args:
        images: Folder of scans (.nii .nii.gz .nrrd .mha .mhd .png .jpg, or folders of DICOM files); a scan of several
            channels is one file for each, with `_0000`, `_0001` behind its name.
        labels: Folder of labels; `null` for scans without.
        values: Name of each structure and its value in the label files.
        modality: `CT`, `MR` or another short name.
        val_share: Share of the subjects for validation.
        test_share: Share of the subjects for testing.
        seed: Another seed splits otherwise.
        unlabelled: What scans without labels are for: to `predict` on, or to learn from (`train`), where a table says
            something of whole scans; these are divided like labelled ones.
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
        unlabelled: Literal["predict", "train"] = "predict",
    ) -> None:
        if labels is not None and not values:
            raise ValueError(f"labels in {labels} need names: values: {{liver: 1, spleen: 2}}")
        self.images, self.labels = Path(images), None if labels is None else Path(labels)
        self.values = values or {}
        self.modality = modality
        self.splits = Splits(val_share, test_share, seed=seed)
        self.unlabelled: Literal["predict", "train"] = unlabelled

    def cases(self) -> list[Case]:
        """Return the scans in the order of their names, each with its label.

        Raises:
            ValueError: There are no scans, two are of one name, or some have no label.
        """
        labels = {} if self.labels is None else scans(self.labels)
        found = LayoutResult("pair")
        subjects = by_channel(scans(self.images), labels)
        if self.labels is None:
            cases = [Case(name, self.unlabelled, image, modality=self.modality) for name, image in subjects.items()]
            return self.splits.assign(cases) if self.unlabelled == "train" else cases
        found.add_pairs(subjects, labels, "train", values=self.values, modality=self.modality)
        return self.splits.assign(sound(found))

    @property
    def description(self) -> str:
        """One line for reports."""
        return f"scans in {self.images.name}"


class ScanTable(Source):
    """Scans that a CSV table names, one a line.

    Columns: `subject`, `split` (train, val, test or predict), `image`, `label` (may be empty), and if wanted `drawn`
    (names with `;` between them) and `drawn_planes` (numbers likewise). Relative paths start at the table. A table may
    have all other columns of a manifest too; see `lightning_atlas.data.sources.manifest`.

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
        if missing := {"subject", "split", "image"} - {
            column.partition(":")[0] for column in read_rows(self.path)[0][1]
        }:
            raise ValueError(f"{self.path} has no column {', '.join(sorted(missing))}")
        settings = {"values": self.values, "modality": self.modality, "ignore_value": self.ignore_value}
        return present(read_manifest(self.path, settings))

    @property
    def description(self) -> str:
        """One line for reports."""
        return f"scans of {self.path.name}"


class ScanLayout(Source):
    """Scans in a folder as a published dataset, a program or a person has laid them out.

    Args:
        path: The folder, or the file that lists it.
        layout: `abdomenatlas`, `totalsegmentator`, `nnunet`, `decathlon`, `dataset.json`, `bids`, `pair`, `slicer`,
            `flat`, `saros`, `lidc`, `lidc_by_nodule`, `imagefolder`, `coco`, `deeplesion` or `manifest`; `null` guesses
            it and says so.
        modality: `CT`, `MR` or another short name, where the layout does not say it.
        aliases: Name in the files -> name to read it as.
        vocabulary: What the names mean: a built-in vocabulary or a file.
        drawn_on: Where somebody drew, if not everywhere.
        values: Name -> value of label maps whose names stand nowhere; by default the vocabulary's.
        lists: Split (`train`, `val`, `test`) -> its subjects, or a text file with a subject a line, as publications
            have them; cases on none of them are left out.
        patient: Where a patient has several scans, a pattern (regular expression) whose one group, in the subject's
            name, is the patient: `(P[0-9]+)_.*`.
    """

    def __init__(  # noqa: PLR0913 - each is a line of a recipe
        self,
        path: Path,
        layout: str | None = None,
        modality: str | None = None,
        aliases: dict[str, str] | None = None,
        vocabulary: str | None = None,
        drawn_on: list[DrawnOn] | None = None,
        values: dict[str, int] | None = None,
        lists: dict[str, Path | list[str]] | None = None,
        patient: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.lists = dict(lists or {})
        self.patient = patient
        self.layout = layout
        self.modality = modality
        self.aliases = aliases
        self.vocabulary = vocabulary
        self.drawn_on = tuple(drawn_on or ())
        self.values = values

    def read(self) -> LayoutResult:
        """Return the cases with what a person should know of them, and the scans that could not become cases.

        Raises:
            ValueError: No layout fits, or several; or a table of the dataset, or a list, has a fault.
        """
        result = read_layout(self.path, self.layout, self.aliases, self.values or self._vocabulary_values())
        told = {"modality": self.modality, "vocabulary": self.vocabulary, "drawn_on": self.drawn_on}
        told = {key: value for key, value in told.items() if value}
        cases = [replace(case, **told) for case in result.cases] if told else result.cases
        cases = of_patients(cases, self.patient) if self.patient else cases
        result.cases = listed(cases, self.lists) if self.lists else cases
        return result

    def cases(self) -> list[Case]:
        """Return the scans in the order of their names.

        Raises:
            ValueError: As for `read`; or some scans could not become cases.
        """
        return sound(self.read())

    @property
    def description(self) -> str:
        """One line for reports."""
        what = "pictures" if self.layout in ("imagefolder", "coco") else "scans"
        return f"{what} of {self.path.name}"

    def _vocabulary_values(self) -> Mapping[str, int] | None:
        return load_vocabulary(self.vocabulary).values if self.vocabulary else None


def sound(result: LayoutResult) -> list[Case]:
    """Return the cases if all scans could become such.

    Raises:
        ValueError: Some could not; each has a line.
    """
    if result.defects:
        raise ValueError("\n".join(map(str, result.defects)))
    return result.cases
