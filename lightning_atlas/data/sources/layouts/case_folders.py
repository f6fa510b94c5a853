"""AbdomenAtlas and TotalSegmentator: a folder a case, with the scan and a mask file for each structure.

Scans and masks may lie apart: `image_only/CASE/ct.nii.gz` and `mask_only/CASE/segmentations/*.nii.gz`.
"""

import re
from itertools import islice
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
FEW_CASES = 5
TOTALSEGMENTATOR = re.compile(r"s\d{4}")


def is_abdomenatlas(path: Path) -> bool:
    """Tell whether there are folders with a scan and masks, together or apart, but not TotalSegmentator's."""
    return bool(_has_cases(path) or _apart(path)) and not is_totalsegmentator(path)


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


def _apart(path: Path) -> tuple[Path, Path] | None:
    """Return the folder in which there are scans and the one in which there are masks, where these are two."""
    few = {folder: list(islice(folders(folder), FEW_CASES)) for folder in folders(path)}
    scans = [folder for folder, cases in few.items() if any(_scan(case) for case in cases)]
    masks = [folder for folder, cases in few.items() if any((case / MASKS).is_dir() for case in cases)]
    return (scans[0], masks[0]) if len(scans) == len(masks) == 1 and scans != masks else None


def _scan(folder: Path) -> Path | None:
    return next((file for file in visible(folder) if stem(file).lower() in SCANS and is_image(file)), None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5])


def _listed(layout: str, path: Path, splits: dict[str, Split]) -> LayoutResult:
    result = LayoutResult(layout)
    scans_in, masks_in = (None if _has_cases(path) else _apart(path)) or (path, path)
    combined = 0
    for name in sorted({folder.name for root in (scans_in, masks_in) for folder in folders(root)}):
        scan, drawn = _scan(scans_in / name), masks_in / name
        masks = {stem(file): Mark(file) for file in images(drawn / MASKS)}
        combined += (drawn / COMBINED).is_file()
        if scan is not None:
            fields = {"masks": masks} if masks else None
            result.add(name, splits.get(name, "train"), scan, fields, modality=SCANS[stem(scan).lower()])
        elif masks:
            found = "has no scan called ct or mri"
            result.defects.append(Defect(scans_in / name, found, "copy ct.nii.gz there again", name))
        else:
            result.notes.append(f"{name} is no case: it holds neither a scan nor {MASKS}")
    if scans_in != masks_in:
        result.notes.append(f"scans are those in {scans_in.name}, masks those in {masks_in.name}")
    if combined:
        result.notes.append(f"{COMBINED} of {combined} cases are left alone; {MASKS} say the same")
    return result


ABDOMENATLAS = Layout(
    "abdomenatlas",
    "CASE/ct.nii.gz and CASE/segmentations/STRUCTURE.nii.gz, in one folder or in two",
    is_abdomenatlas,
    read_abdomenatlas,
)
TOTALSEGMENTATOR_CT_MR = Layout(
    "totalsegmentator",
    "meta.csv, s0000/ct.nii.gz or mri.nii.gz, and s0000/segmentations/STRUCTURE.nii.gz",
    is_totalsegmentator,
    read_totalsegmentator,
)
