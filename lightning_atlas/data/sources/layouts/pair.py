"""Two folders side by side: images in one, labels of the same names in the other."""

from pathlib import Path

from lightning_atlas.data.sources.layouts.label_table import LabelTable, read_labels
from lightning_atlas.data.sources.layouts.listed import lists_files
from lightning_atlas.data.sources.layouts.listing import by_channel, by_subject, folders, images, scans
from lightning_atlas.data.sources.layouts.nnunet import is_nnunet
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.tables import read_json

IMAGES = ("images", "image", "imagestr", "imgs", "img", "scans", "scan", "volumes", "volume", "ct", "cts", "mr", "mri")
LABELS = (
    *("labels", "label", "labelstr", "masks", "mask", "segmentations", "segmentation", "segs", "seg"),
    *("annotations", "groundtruth", "ground_truth", "gt"),
)
TO_PREDICT = "imagests"
TABLES = ("labels.json", "dataset.json")


def is_pair(path: Path) -> bool:
    """Tell whether one folder of images and one of labels stand here, by their names."""
    found = None if is_nnunet(path) or lists_files(path) else _folders(path)
    return found is not None and all(images(folder) for folder in found)


def read_pair(path: Path) -> LayoutResult:
    """List the images with their labels.

    Names may differ in what they say of the file's role: `a_0000` or `a_image` and `a_label`. A `labels.json` or
    `dataset.json` beside the folders names the values.

    Raises:
        ValueError: The folders cannot be told apart, or a table has a fault.
    """
    found = _folders(path)
    if found is None:
        known = f"{', '.join(IMAGES)} and {', '.join(LABELS)}"
        raise ValueError(f"{path} has not one folder of images and one of labels; known names are {known}")
    image_folder, label_folder = found
    table, label_files, image_files = value_table(path), scans(label_folder), scans(image_folder)
    result = LayoutResult("pair", unions=table.unions)
    if not set(by_channel(image_files, label_files)) & set(label_files):
        image_files, label_files = by_subject(image_files), by_subject(label_files)
    subjects = by_channel(image_files, label_files)
    result.add_pairs(subjects, label_files, "train", values=table.values, ignore_value=table.ignore_value)
    for folder in folders(path):
        if folder.name.lower() == TO_PREDICT and images(folder):
            for subject, image in by_channel(scans(folder)).items():
                result.add(subject, "predict", image, None)
    return result


def _folders(path: Path) -> tuple[Path, Path] | None:
    here = {folder.name.lower(): folder for folder in folders(path)}
    found = [[here[name] for name in names if name in here] for names in (IMAGES, LABELS)]
    return (found[0][0], found[1][0]) if len(found[0]) == len(found[1]) == 1 else None


def value_table(path: Path) -> LabelTable:
    """Return what a `labels.json` or a `dataset.json` in a folder says of the values; nothing without one."""
    for name in TABLES:
        if (path / name).is_file():
            document = read_json(path / name)
            told = document if isinstance(document, dict) and "labels" in document else {"labels": document}
            return read_labels(path / name, told)
    return LabelTable()


PAIR = Layout("pair", "images/NAME and labels/NAME", is_pair, read_pair)
