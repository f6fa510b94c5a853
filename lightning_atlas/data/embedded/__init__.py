"""Five real scans of five people with labels, carried in the package; NOTICE says where each is from."""

import json
from pathlib import Path
from typing import Literal

from lightning_atlas.data.cases import Case, Source, Split

Scan = Literal["abdomen_ct", "abdomen_mr", "chest_ct", "spine_ct", "spine_mr"]

HERE = Path(__file__).parent
FILES: dict[str, tuple[str, str]] = {
    "abdomen_ct": ("abdomen_ct.nii.gz", "abdomen_ct_labels.nii.gz"),
    "abdomen_mr": ("abdomen_mr.nii.gz", "abdomen_mr_labels.nii.gz"),
    "chest_ct": ("chest_ct.nrrd", "chest_ct_labels.seg.nrrd"),
    "spine_ct": ("spine_ct.nii.gz", "spine_ct_labels.nii.gz"),
    "spine_mr": ("spine_mr.nii.gz", "spine_mr_labels.nii.gz"),
}


def embedded_case(scan: Scan, split: Split) -> Case:
    """Return one of the embedded scans as a case.

    Raises:
        ValueError: There is no such scan.
    """
    if scan not in FILES:
        raise ValueError(f"no embedded scan is called {scan!r}; there are {', '.join(FILES)}")
    image, label = (HERE / name for name in FILES[scan])
    values = json.loads((HERE / f"{scan}.json").read_text(encoding="utf-8"))
    return Case(scan, split, image, label, values, modality=modality(scan))


def modality(scan: Scan) -> str:
    """Return `CT` or `MR`."""
    return scan.rsplit("_", 1)[-1].upper()


class EmbeddedScan(Source):
    """One real scan of one person, carried in the package.

    Args:
        scan: Which of the five scans.
        split: The part of the data that it makes up.
    """

    def __init__(self, scan: Scan, split: Split = "test") -> None:
        self.case = embedded_case(scan, split)
        self.modality = self.case.modality

    def cases(self) -> list[Case]:
        """Return the one case."""
        return [self.case]

    @property
    def description(self) -> str:
        """One line for reports."""
        return f"one real scan ({self.case.subject})"
