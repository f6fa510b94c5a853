"""One folder with scans and their segmentations side by side: `case1.nii.gz` and `case1_seg.nii.gz`."""

from pathlib import Path

from lightning_atlas.data.formats import is_picture, stem
from lightning_atlas.data.sources.layouts.listed import lists_files
from lightning_atlas.data.sources.layouts.listing import LABELLED, LABELLED_AHEAD, by_channel, by_subject, images
from lightning_atlas.data.sources.layouts.pair import value_table
from lightning_atlas.data.sources.layouts.result import Image, Layout, LayoutResult


def is_flat(path: Path) -> bool:
    """Tell whether some label in a folder belongs to a scan in it by its name."""
    if lists_files(path):
        return False
    scans, labels = _parted(path)
    return bool(set(_subjects(scans, labels)) & set(labels))


def read_flat(path: Path) -> LayoutResult:
    """List the scans with their labels; a `labels.json` beside them names the values.

    Raises:
        ValueError: Two files would be one subject's scan or label, or a table has a fault.
    """
    scans, labels = _parted(path)
    for kind, files in (("scan", scans), ("label", labels)):
        for subject, found in files.items():
            if len(found) > 1:
                names = " and ".join(file.name for file in found)
                raise ValueError(f"{path}: {names} would both be the {kind} of {subject}; rename or move one of them")
    table = value_table(path)
    result = LayoutResult("flat", unions=table.unions)
    label_files = {subject: found[0] for subject, found in labels.items()}
    told = {"values": table.values, "ignore_value": table.ignore_value}
    result.add_pairs(_subjects(scans, labels), label_files, "train", **told)
    return result


def _parted(path: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Return name -> scans, and subject -> labels."""
    scans: dict[str, list[Path]] = {}
    labels: dict[str, list[Path]] = {}
    for file in images(path):
        name = stem(file)
        found = LABELLED.fullmatch(name) or LABELLED_AHEAD.fullmatch(name)
        if is_picture(file):
            continue
        if found or file.name.lower().endswith(".seg.nrrd"):
            labels.setdefault(found["subject"] if found else name, []).append(file)
        else:
            scans.setdefault(name, []).append(file)
    return scans, labels


def _subjects(scans: dict[str, list[Path]], labels: dict[str, list[Path]]) -> dict[str, Image]:
    files = {name: found[0] for name, found in scans.items()}
    subjects = by_channel(files, labels)
    return dict(subjects if set(subjects) & set(labels) else by_channel(by_subject(files), labels))


FLAT = Layout("flat", "NAME.nii.gz and NAME_seg.nii.gz (or -label, _mask, .seg.nrrd) side by side", is_flat, read_flat)
