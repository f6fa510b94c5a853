"""AbdomenAtlas and TotalSegmentator: a folder a case, with the scan and a mask file for each structure."""

import re
from pathlib import Path

from lightning_atlas.data.cases import Mark, Split
from lightning_atlas.data.formats import is_image, stem
from lightning_atlas.data.sources.layouts.listing import SPLIT_NAMES, folders, images, visible
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.tables import read_rows
from lightning_atlas.data.survey.checks import Defect

MASKS, COMBINED, TABLE = "segmentations", "combined_labels.nii.gz", "meta.csv"
SCANS = {"ct": "CT", "mri": "MR"}
"""Name of the scan's file -> modality."""
TOTALSEGMENTATOR = re.compile(r"s\d{4}")


def is_abdomenatlas(path: Path) -> bool:
    """Tell whether there are folders with a scan and masks, but not TotalSegmentator's."""
    return _has_cases(path) and not is_totalsegmentator(path)


def is_totalsegmentator(path: Path) -> bool:
    """Tell whether such folders are called `s0000`, or stand in a `meta.csv`."""
    named = any(TOTALSEGMENTATOR.fullmatch(folder.name) for folder in folders(path))
    return _has_cases(path) and (named or (path / TABLE).is_file())


def read_abdomenatlas(path: Path) -> LayoutResult:
    """List the folders of AbdomenAtlas 1.0 and 1.1; the dataset does not divide them."""
    return _listed("abdomenatlas", path, {})


def read_totalsegmentator(path: Path) -> LayoutResult:
    """List the folders of TotalSegmentator CT or MR with the splits of its `meta.csv`.

    Raises:
        ValueError: The table has no column `image_id`.
    """
    rows = read_rows(path / TABLE) if (path / TABLE).is_file() else []
    if rows and "image_id" not in rows[0][1]:
        raise ValueError(f"{path / TABLE} has no column image_id, but {', '.join(rows[0][1])}")
    splits = {row["image_id"]: row["split"].lower() for _, row in rows if row.get("split")}
    if strange := sorted(set(splits.values()) - set(SPLIT_NAMES)):
        raise ValueError(f"{path / TABLE} has the split {strange[0]!r}; expected train, val or test")
    result = _listed("totalsegmentator", path, {name: SPLIT_NAMES[split] for name, split in splits.items()})
    here = {each.subject for each in (*result.cases, *result.defects)}
    if splits and (open_ := sorted(here - set(splits))):
        result.notes.append(f"{len(open_)} subjects have no split in {TABLE} and are taken to train: {_some(open_)}")
    if missing := sorted(set(splits) - here):
        result.notes.append(f"{len(missing)} subjects of {TABLE} have no folder: {_some(missing)}")
    return result


def _has_cases(path: Path) -> bool:
    return any((folder / MASKS).is_dir() and _scan(folder) for folder in folders(path))


def _scan(folder: Path) -> Path | None:
    return next((file for file in visible(folder) if stem(file).lower() in SCANS and is_image(file)), None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5])


def _listed(layout: str, path: Path, splits: dict[str, Split]) -> LayoutResult:
    result = LayoutResult(layout)
    combined = 0
    for folder in folders(path):
        scan, masks = _scan(folder), {stem(file): Mark(file) for file in images(folder / MASKS)}
        combined += (folder / COMBINED).is_file()
        if scan is not None:
            drawn = {"masks": masks} if masks else None
            modality = SCANS[stem(scan).lower()]
            result.add(folder.name, splits.get(folder.name, "train"), scan, drawn, modality=modality)
        elif masks:
            found = "has no scan called ct or mri"
            result.defects.append(Defect(folder, found, "copy ct.nii.gz there again", folder.name))
        else:
            result.notes.append(f"{folder.name} is no case: it holds neither a scan nor {MASKS}")
    if combined:
        result.notes.append(f"{COMBINED} of {combined} cases are left alone; {MASKS} say the same")
    return result


ABDOMENATLAS = Layout(
    "abdomenatlas", "CASE/ct.nii.gz and CASE/segmentations/STRUCTURE.nii.gz", is_abdomenatlas, read_abdomenatlas
)
TOTALSEGMENTATOR_CT_MR = Layout(
    "totalsegmentator",
    "meta.csv, s0000/ct.nii.gz or mri.nii.gz, and s0000/segmentations/STRUCTURE.nii.gz",
    is_totalsegmentator,
    read_totalsegmentator,
)
