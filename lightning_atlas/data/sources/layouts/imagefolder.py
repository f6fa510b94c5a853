"""Pictures in a folder for each class, perhaps in folders that are called like their split."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_atlas.data.cases import Split
from lightning_atlas.data.formats import ENDINGS, is_picture, stem
from lightning_atlas.data.sources.layouts.coco import is_coco
from lightning_atlas.data.sources.layouts.listing import SPLIT_NAMES
from lightning_atlas.data.sources.layouts.pair import is_pair
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult


class ClassFolder(NamedTuple):
    """A folder of one class.

    Args:
        split: Its split.
        folder: The folder.
        images: In it and below.
        others: How many other files there are, by ending.
    """

    split: Split
    folder: Path
    images: list[Path]
    others: Counter[str]


def is_imagefolder(path: Path) -> bool:
    """Tell whether there are two folders at least that hold pictures, and no other layout that has such."""
    holding = {
        folder.name
        for _, folder in _classes(path)
        if any(is_picture(file) for file, is_folder in _entries(folder) if not is_folder)
    }
    return len(holding) > 1 and not is_pair(path) and not is_coco(path)


def read_imagefolder(path: Path) -> LayoutResult:
    """List the images in folders that are called like their class, perhaps in folders called like their split.

    Links are followed, and what is hidden is left out. If a folder is called like a split, classes lie in splits only.

    Raises:
        ValueError: A class has no image, those of a split lie in no class, or some lie in a folder beside the splits.
    """
    bare, left_out = _outside(path)
    classes = [_class(split, folder) for split, folder in _classes(path)]
    _check_held(classes)
    names, dataset = sorted({each.folder.name for each in classes}), path.resolve().name
    result = LayoutResult("imagefolder", target_names=tuple(names))
    numbers = {name: number for number, name in enumerate(names)}
    taken: set[str] = set()
    for split, folder, images, _ in classes:
        for file in images:
            parts = file.relative_to(path).parts
            subject = "_".join((*parts[:-1], stem(file)))
            subject = "_".join(parts) if subject.casefold() in taken else subject  # a.png beside a.jpg
            taken.add(subject.casefold())
            result.add(subject, split, file, {"target": numbers[folder.name]}, dataset=dataset)
    if left_out := sum((each.others for each in classes), left_out):
        result.notes.append(f"files left out: {_told(left_out)}")
    if bare := [*bare, *(each.folder for each in classes if not each.images)]:
        some = ", ".join(folder.relative_to(path).as_posix() for folder in bare)
        result.notes.append(f"folders without a picture are left out: {some}")
    result.notes.append(f"classes: {', '.join(f'{number} {name}' for number, name in enumerate(names))}")
    return result


def _class(split: Split, folder: Path) -> ClassFolder:
    files = list(_files(folder, set()))
    others = Counter(file.suffix.lower() or "without an ending" for file in files if not _is_image(file))
    return ClassFolder(split, folder, [file for file in files if _is_image(file)], others)


def _check_held(classes: Sequence[ClassFolder]) -> None:
    held = {each.folder.name for each in classes if each.images}
    for each in classes:
        if each.folder.name not in held:
            raise ValueError(
                f"{each.folder} holds no PNG or JPEG ({_told(each.others) or 'it is empty'}), so its class cannot be "
                "learned: save its pictures as such, or move the folder away"
            )


def _classes(path: Path) -> list[tuple[Split, Path]]:
    splits = _splits(path)
    if splits:
        return [(SPLIT_NAMES[each.name.lower()], folder) for each in splits for folder in _folders(each)]
    return [("train", folder) for folder in _folders(path)]


def _splits(path: Path) -> list[Path]:
    tops = _folders(path)
    named = [top for top in tops if top.name.lower() in SPLIT_NAMES]
    vehicles = [top.name for top in named] == ["train"] and len(tops) > 1 and not _folders(named[0])
    return [] if vehicles else named  # beside `bus` and `car`, with pictures and no folders, `train` is a class


def _outside(path: Path) -> tuple[list[Path], Counter[str]]:
    """Return the folders that are no classes and hold no image, and count the images that lie in no class.

    Raises:
        ValueError: A split has images and no classes, or other folders beside the splits have images.
    """
    splits = _splits(path)
    bare = []
    for top in (top for top in _folders(path) if splits and top not in splits):
        if found := next(filter(_is_image, _files(top, set())), None):
            raise ValueError(
                f"{top} holds pictures ({found.relative_to(top).as_posix()}) and lies beside {_names(splits)}, which "
                "are splits: move it into a split, if it is a class, or away"
            )
        bare.append(top)
    loose = 0
    for folder in (path, *splits):
        images = sum(_is_image(file) for file, is_folder in _entries(folder) if not is_folder)
        if folder in splits and not _folders(folder):
            if images:
                raise ValueError(
                    f"{folder} holds pictures ({images}) and no folder for a class, so nothing says what they show: "
                    f"put them into {folder.name}/CLASS/, or move {folder.name} away"
                )
            bare.append(folder)
        loose += images
    return bare, Counter({"in no class": loose}) if loose else Counter()


def _files(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Yield the files in a folder and in those below, in the order of their parts; through links, each folder once."""
    real = str(folder.resolve())
    if real in seen:
        return
    seen.add(real)
    for path, is_folder in _entries(folder):
        if is_folder:
            yield from _files(path, seen)
        else:
            yield path


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    """Return what lies in a folder but what is hidden, and whether each is a folder, which the listing says by itself.

    Raises:
        ValueError: The folder may not be read.
    """
    if not folder.is_dir():
        return []
    try:
        with os.scandir(folder) as entries:
            shown = sorted((entry.name, _is_folder(entry)) for entry in entries)
    except OSError as error:
        raise ValueError(f"{folder} cannot be listed ({error.strerror}); see to its permissions") from error
    return [(folder / name, is_folder) for name, is_folder in shown if not name.startswith((".", "__MACOSX"))]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _folders(folder: Path) -> list[Path]:
    return [path for path, is_folder in _entries(folder) if is_folder]


def _is_image(file: Path) -> bool:
    return file.name.lower().endswith(ENDINGS)


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(folder.name for folder in folders)


IMAGEFOLDER = Layout(
    "imagefolder", "CLASS/NAME.png or .jpg, perhaps in train, val and test", is_imagefolder, read_imagefolder
)
