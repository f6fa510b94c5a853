"""Pictures with boxes as COCO writes them.

Source: https://cocodataset.org/#format-data. A column is i and a row is j; boxes end behind their last voxel.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

from lightning_atlas.data.cases import Split
from lightning_atlas.data.formats import BadFileError, stem
from lightning_atlas.data.sources.layouts.deeplesion import is_deeplesion
from lightning_atlas.data.sources.layouts.listing import SPLIT_NAMES, folders, visible
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.tables import expect, read_json

Found = TypeVar("Found")
EXAMPLES = {
    "images": '{"id": 1, "file_name": "1.jpg"}',
    "annotations": '{"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 8.0, 6.0]}',
    "categories": '{"id": 1, "name": "cat"}',
}


class Picture(NamedTuple):
    """A picture that a file of COCO lists.

    Args:
        folder: Where its name starts.
        name: As it is listed, perhaps with folders.
        split: Its split.
        boxes: In voxels, with the numbers of their classes.
    """

    folder: Path
    name: PurePath
    split: Split
    boxes: tuple[tuple[float, ...], ...]


def is_coco(path: Path) -> bool:
    """Tell whether there is a JSON file of images, annotations and categories."""
    return bool(_annotations(path)) and not is_deeplesion(path)


def read_coco(path: Path) -> LayoutResult:
    """List the images of COCO files with their boxes; a file called `train` or `val` gives its images that split.

    Classes go by their names, whatever number each file gives them, in the order of the lowest of these numbers.

    Raises:
        ValueError: A file is not as COCO writes it, or its images lie nowhere near, or in two places.
    """
    documents = {file: expect(read_json(file), dict, str(file), '{"images": [...]}') for file in _annotations(path)}
    told = {file: dict(_entries(file, document, "categories", _category)) for file, document in documents.items()}
    ids: dict[str, set[int]] = {}
    for identity, name in (pair for each in told.values() for pair in each.items()):
        ids.setdefault(name, set()).add(identity)
    names = sorted(ids, key=lambda name: (min(ids[name]), name))
    result = LayoutResult("coco", target_names=tuple(names))
    pictures: list[Picture] = []
    for file, document in documents.items():
        numbers = {identity: names.index(name) for identity, name in told[file].items()}
        pictures += _pictures(result, path, file, document, numbers)
    for subject, each in zip(_subjects(pictures), pictures, strict=True):
        result.add(subject, each.split, each.folder / each.name, {"boxes": each.boxes})
    if several := [name for name in names if len(ids[name]) > 1]:
        result.notes.append(f"categories with several ids are one class each, by their names: {', '.join(several)}")
    result.notes.append(f"classes: {', '.join(f'{number} {name}' for number, name in enumerate(names))}")
    return result


def _annotations(path: Path) -> list[Path]:
    places = [path, *(folder for folder in folders(path) if folder.name.lower() in ("annotations", *SPLIT_NAMES))]
    files = [path] if path.is_file() else [file for place in places for file in visible(place)]
    found = [file for file in files if file.suffix.lower() == ".json" and _has_keys(file)]
    return [file for file in found if file.name.startswith("instances")] or found  # not key points of the same images


def _has_keys(file: Path) -> bool:
    text = file.read_bytes()
    return all(f'"{key}"'.encode() in text for key in EXAMPLES)


def _entries(
    file: Path, document: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any]], Found]
) -> list[Found]:
    """Return what is read of each entry under a key; the first that cannot be read is told with its number, from 1."""
    found = []
    for number, entry in enumerate(expect(document.get(key), list, f"{file}, {key}", f"[{EXAMPLES[key]}]"), start=1):
        try:
            found.append(read(entry))
        except (KeyError, TypeError, ValueError) as error:
            fault = f"lacks {error}" if isinstance(error, KeyError) else f"is not as COCO writes it ({error})"
            raise ValueError(f"{file}, {key} {number}, {fault}; write it like {EXAMPLES[key]}") from error
    return found


def _category(entry: Mapping[str, Any]) -> tuple[int, str]:
    return expect(entry["id"], int, "id", "1"), str(entry["name"])


def _image(entry: Mapping[str, Any]) -> tuple[Any, PurePath]:
    return entry["id"], PurePath(expect(entry["file_name"], str, "file_name", '"1.jpg"'))


def _box(numbers: Mapping[int, int], entry: Mapping[str, Any]) -> tuple[Any, bool, tuple[float, ...]]:
    x, y, width, height = map(float, entry["bbox"])
    if (category := entry["category_id"]) not in numbers:
        raise ValueError(f"no category has the id {category}")
    box = (x, y, 0.0, x + width, y + height, 1.0, float(numbers[category]))
    return entry["image_id"], bool(entry.get("iscrowd")), box


def _pictures(
    result: LayoutResult, path: Path, file: Path, document: Mapping[str, Any], numbers: Mapping[int, int]
) -> list[Picture]:
    boxes: dict[Any, list[tuple[float, ...]]] = {}
    crowds = flat = 0
    for image, crowd, box in _entries(file, document, "annotations", partial(_box, numbers)):
        extends = box[0] < box[3] and box[1] < box[4]
        crowds += crowd
        flat += not extends
        if extends and not crowd:
            boxes.setdefault(image, []).append(box)
    if crowds or flat:
        result.notes.append(f"{file.name}: {crowds} boxes around crowds and {flat} without an extent are left out")
    images = _entries(file, document, "images", _image)
    names: dict[PurePath, set[str]] = {}
    for _, name in images:
        names.setdefault(name.parent, set()).add(name.name)
    folder, lost = _folder_of_images(path, file, names)
    words = [*re.split(r"[^a-z]+", file.stem.lower()), file.parent.name.lower()]
    named: list[Split] = [SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES]
    split = named[0] if named else "train"
    listed = [Picture(folder, name, split, tuple(boxes.pop(identity, ()))) for identity, name in images]
    if lost:
        some = ", ".join(map(str, lost[:5]))
        found = f"lists {_count(names)} pictures, and {len(lost)} of them cannot be found in {folder}: {some}"
        result.refuse(file.name, BadFileError(file, found, "copy them there, or take them out of the list"))
    if boxes:
        found = f"has boxes for images that it does not list: {', '.join(map(str, list(boxes)[:5]))}"
        result.refuse(file.name, BadFileError(file, found, "list them under images, or take their boxes out"))
    absent = set(lost)
    return [each for each in listed if each.name not in absent] if absent else listed


def _folder_of_images(path: Path, file: Path, names: Mapping[PurePath, set[str]]) -> tuple[Path, list[PurePath]]:
    """Return where a file's pictures lie, and which of them do not.

    Its own folder and those that it is called like come first, if they hold any; of others, one that holds all.

    Raises:
        ValueError: There is none, or there are two.
    """
    root = path.parent if path.is_file() else path
    inside, outside = [root, *folders(root), *folders(root / "images")], [root.parent, *folders(root.parent)]
    alike = [folder for folder in (*inside, *outside) if folder.name and folder.name.lower() in file.stem.lower()]
    own = {folder: _lost(folder, names) for folder in (file.parent, *sorted(alike, key=lambda each: -len(each.name)))}
    fullest = min(own, key=lambda folder: len(own[folder]))
    if not names or len(own[fullest]) < _count(names):
        return fullest, own[fullest]
    first = min(parent / min(some) for parent, some in names.items())
    for near in (inside, outside):
        whole = list({folder.resolve(): folder for folder in near if not _lost(folder, names)}.values())
        if len(whole) > 1:
            raise ValueError(
                f"{file} lists {first} and others, which {whole[0]} and {whole[1]} both hold: move it into the "
                f"right one, or call it like that, such as instances_{whole[0].name}.json"
            )
        if whole:
            return whole[0], []
    raise ValueError(f"{file} lists {first}, and no folder near {root} holds all its pictures; put them beside it")


def _lost(folder: Path, names: Mapping[PurePath, set[str]]) -> list[PurePath]:
    """Return which names, given by folder, are not in a folder; each folder is listed once, no file is looked up."""
    lost = []
    for parent, wanted in names.items():
        try:
            with os.scandir(folder / parent) as entries:
                held = {entry.name for entry in entries}
        except OSError:
            held = set()
        lost += [parent / name for name in sorted(wanted - held)]
    return lost


def _count(names: Mapping[PurePath, set[str]]) -> int:
    return sum(map(len, names.values()))


def _subjects(pictures: Sequence[Picture]) -> list[str]:
    """Call pictures by their names; those that are alike by the folders that tell them apart too, then by ending."""
    common = os.path.commonpath({each.folder for each in pictures} or {""})
    subjects = [_joined(each.name.parts) for each in pictures]
    for called in (_joined, "_".join):
        holders: dict[str, list[int]] = {}
        for place, subject in enumerate(subjects):
            holders.setdefault(subject.casefold(), []).append(place)
        for places in holders.values():
            if len(places) > 1 and len({pictures[place].folder / pictures[place].name for place in places}) > 1:
                for place in places:
                    folder, name, *_ = pictures[place]
                    subjects[place] = called((*folder.relative_to(common).parts, *name.parts))
    return subjects


def _joined(parts: Sequence[str]) -> str:
    return "_".join((*parts[:-1], stem(Path(parts[-1]))))


COCO = Layout("coco", "annotations/*.json with images, annotations and categories", is_coco, read_coco)
