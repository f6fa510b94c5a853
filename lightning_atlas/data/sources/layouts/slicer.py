"""Work of 3D Slicer or another program: a folder a case, with one image and one segmentation under any names."""

import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from lightning_atlas.data.formats import BadFileError, is_image, is_picture, read_header, read_labels, segments, stem
from lightning_atlas.data.sources.layouts.case_folders import MASKS
from lightning_atlas.data.sources.layouts.listing import folders, images
from lightning_atlas.data.sources.layouts.pair import IMAGES, LABELS
from lightning_atlas.data.sources.layouts.result import SEGMENTED, Layout, LayoutResult

LABEL_WORDS = re.compile(
    r"(?<![a-z])(seg|segmentations?|segmented|labels?|labelmap|masks?|roi|gt|contours?|drawings?)(?![a-z])"
)
FEW_FOLDERS = 5
TIMES_FEWER = 4
"""By how much a label map has fewer values than a scan, at least."""


def is_slicer(path: Path) -> bool:
    """Tell whether a folder among the first that hold volumes holds two, of which one is a segmentation."""
    own = (folder for folder in folders(path) if folder.name.lower() not in (*IMAGES, *LABELS))
    holding = (found for folder in own if not (folder / MASKS).is_dir() and (found := _volumes(folder)))
    return any(len(files) == 2 and _fits(files) for files in islice(holding, FEW_FOLDERS))


def read_slicer(path: Path) -> LayoutResult:
    """List the folders; the segmentation is told by its segments, its name, its type, at last by its few values."""
    result = LayoutResult("slicer")
    for folder in folders(path):
        files = _volumes(folder)
        if not files:
            result.notes.append(f"{folder.name} is no case: it holds no image")
            continue
        try:
            label = _label_among(files, (_segmented, _called_label, _smaller, _few_values))
        except BadFileError as error:
            result.refuse(folder.name, error)
            continue
        scans = [file for file in files if file != label]
        if len(scans) == 1:
            result.add(folder.name, "train", scans[0], label)
        else:
            remedy = "leave one image and one segmentation there, the latter called *.seg.nrrd or *-label.*"
            found = f"holds {', '.join(file.name for file in files)}"
            result.refuse(folder.name, BadFileError(folder, found, remedy))
    return result


def _volumes(folder: Path) -> list[Path]:
    """Return the volumes in a folder, and itself if DICOM files lie in it beside them."""
    found = [file for file in images(folder) if not is_picture(file)]
    return [folder, *found] if is_image(folder) else found


def _fits(files: list[Path]) -> bool:
    try:
        return _label_among(files, (_segmented, _called_label, _smaller)) is not None
    except BadFileError:
        return True  # to be told when it is read


def _label_among(files: list[Path], signs: Sequence[Callable[[Path, list[Path]], bool]]) -> Path | None:
    """Return the one file that has a sign of being a segmentation; the first sign that tells one apart decides."""
    for sign in signs:
        labels = [file for file in files if not file.is_dir() and sign(file, [each for each in files if each != file])]
        if len(labels) == 1:
            return labels[0]
    return None


def _segmented(file: Path, _: list[Path]) -> bool:
    return file.name.lower().endswith(".seg.nrrd") or (file.name.lower().endswith(SEGMENTED) and bool(segments(file)))


def _called_label(file: Path, _: list[Path]) -> bool:
    return bool(LABEL_WORDS.search(stem(file).lower()))


def _smaller(file: Path, others: list[Path]) -> bool:
    """Tell whether its voxels are integers, and shorter than the others'."""
    dtype, rest = read_header(file).dtype, [read_header(other).dtype for other in others]
    return dtype.kind in "iu" and bool(rest) and all(dtype.itemsize < other.itemsize for other in rest)


def _few_values(file: Path, others: list[Path]) -> bool:
    """Tell it by the voxels, the only way where header and name say nothing."""
    return bool(others) and _distinct(file) * TIMES_FEWER <= min(map(_distinct, others))


def _distinct(file: Path) -> float:
    """Return how many values its voxels have; infinity if they are no values of labels."""
    try:
        values = np.unique(read_labels(file).numpy())
    except BadFileError:
        return np.inf
    return float(len(values)) if values[0] >= 0 else np.inf


SLICER = Layout("slicer", "CASE/ANY and CASE/ANY.seg.nrrd: one image and one segmentation", is_slicer, read_slicer)
