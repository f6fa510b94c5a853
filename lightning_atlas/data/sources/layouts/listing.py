"""Files of a folder by the names of their subjects, channels and splits."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from lightning_atlas.data.cases import Split
from lightning_atlas.data.formats import ENDINGS, is_image, stem

CHANNEL = re.compile(r"(?P<subject>.+)_(?P<number>\d{4})")
"""What nnU-Net writes behind the names of images, not of labels."""
LABEL_WORD = r"seg(mentation)?s?|label(map|s)?|masks?|gt"
ROLE_WORD = rf"image|img|scan|volume|ct|mri?|{LABEL_WORD}"
ROLE = re.compile(rf"(?P<subject>.+?)[ ._-]+({ROLE_WORD})", re.IGNORECASE)
"""What people write behind a name to say what the file is: `case1_seg.nii.gz`."""
ROLE_AHEAD = re.compile(rf"({ROLE_WORD})[ ._-]*(?P<subject>\d\w*)", re.IGNORECASE)
"""What they write before a number: `img0001` and `label0001` of BTCV, `volume-0` and `segmentation-0` of LiTS."""
LABELLED = re.compile(rf"(?P<subject>.+?)[ ._-]+({LABEL_WORD})", re.IGNORECASE)
"""What they write behind the names of labels."""
LABELLED_AHEAD = re.compile(rf"({LABEL_WORD})[ ._-]*(?P<subject>\d\w*)", re.IGNORECASE)
"""What they write before the numbers of labels."""
SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "va"), "val"),
    **dict.fromkeys(("test", "testing", "ts"), "test"),
}


def visible(folder: Path) -> list[Path]:
    """Return what lies in a folder in the order of the names, but hidden files and those of macOS.

    Raises:
        ValueError: The folder may not be read.
    """
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise ValueError(f"{folder} cannot be listed ({error.strerror}); see to its permissions") from error
    return [path for path in paths if not path.name.startswith((".", "__MACOSX"))]


def folders(folder: Path) -> list[Path]:
    """Return the folders in a folder."""
    return [path for path in visible(folder) if path.is_dir()]


def images(folder: Path) -> list[Path]:
    """Return the images in a folder: files by their names, folders of DICOM series by their content."""
    return [path for path in visible(folder) if is_image(path)]


def scans(folder: Path) -> dict[str, Path]:
    """Return name -> image of every image in a folder.

    Raises:
        ValueError: There is no such folder, no image in it, or two of one name.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in images(folder):
        name = stem(path)
        if name in found:
            raise ValueError(f"two scans are called {name}: {found[name].name} and {path.name} in {folder}")
        found[name] = path
    if not found:
        raise ValueError(f"no scans in {folder}; scans end in {' '.join(ENDINGS)}, or are folders of DICOM files")
    return found


def by_channel(
    files: Mapping[str, Path], labelled: Collection[str] = (), channel_names: Mapping[int, str] | None = None
) -> dict[str, Path | dict[str, Path]]:
    """Group files by nnU-Net's `_0000`: subject -> file, or channel -> file where there are several.

    A name that ends in four digits may also be a subject's: it is one if a label has it, or there is no channel 0.

    Args:
        files: Name -> file.
        labelled: Names of the labels.
        channel_names: Number -> name of the channel.
    """
    grouped: dict[str, dict[str, Path]] = {}
    for name, file in files.items():
        found = CHANNEL.fullmatch(name) if name not in labelled else None
        if found and (found["subject"] in labelled or f"{found['subject']}_0000" in files):
            number = int(found["number"])
            grouped.setdefault(found["subject"], {})[(channel_names or {}).get(number, str(number))] = file
        else:
            grouped[name] = {"": file}
    return {
        subject: next(iter(channels.values())) if len(channels) == 1 else channels
        for subject, channels in sorted(grouped.items())
    }


def by_subject(files: Mapping[str, Path]) -> dict[str, Path]:
    """Return subject -> file, taking `_seg`, `-label`, `img` and the like off the names where these stay apart."""
    roles = {name: ROLE.fullmatch(name) or ROLE_AHEAD.fullmatch(name) for name in files}
    short = {found["subject"] if (found := roles[name]) else name: file for name, file in files.items()}
    return short if len(short) == len(files) else dict(files)
