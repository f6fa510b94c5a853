"""Pictures: a folder for each class, and boxes as COCO writes them.

Source: https://cocodataset.org/#format-data. A column is i and a row is j; boxes end behind their last voxel.
"""

import re
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from lightning_atlas.data.cases import Split
from lightning_atlas.data.formats import BadFileError, is_image, is_picture, stem
from lightning_atlas.data.sources.layouts.deeplesion import is_deeplesion
from lightning_atlas.data.sources.layouts.listing import SPLIT_NAMES, folders, visible
from lightning_atlas.data.sources.layouts.pair import is_pair
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.tables import expect, read_json

COCO_KEYS = ("images", "annotations", "categories")


def is_imagefolder(path: Path) -> bool:
    """Tell whether there are two folders at least that hold pictures, and no other layout that has such."""
    classes = [folder for _, folder in _classes(path)]
    holding = (folder for folder in classes if any(is_picture(file) for file in visible(folder)))
    return len({folder.name for folder in holding}) > 1 and not is_pair(path) and not is_coco(path)


def read_imagefolder(path: Path) -> LayoutResult:
    """List the images in folders that are called like their class, perhaps in folders called like their split."""
    names = sorted({folder.name for _, folder in _classes(path)})
    numbers, dataset = {name: number for number, name in enumerate(names)}, path.resolve().name
    result = LayoutResult("imagefolder", target_names=tuple(names))
    taken: set[str] = set()
    for split, folder in _classes(path):
        for file in sorted(folder.rglob("*"), key=attrgetter("parts")):
            if is_image(file):
                parts = file.relative_to(path).parts
                subject = "_".join((*parts[:-1], stem(file)))
                subject = "_".join(parts) if subject in taken else subject  # a.png beside a.jpg
                taken.add(subject)
                result.add(subject, split, file, {"target": numbers[folder.name]}, dataset=dataset)
    result.notes.append(f"classes: {', '.join(f'{number} {name}' for number, name in enumerate(names))}")
    return result


def is_coco(path: Path) -> bool:
    """Tell whether there is a JSON file of images, annotations and categories."""
    return bool(_annotations(path)) and not is_deeplesion(path)


def read_coco(path: Path) -> LayoutResult:
    """List the images of COCO files with their boxes; a file called `train` or `val` gives its images that split.

    Raises:
        ValueError: A file lacks a key, or its images lie nowhere near.
    """
    documents = {file: expect(read_json(file), dict, str(file), '{"images": [...]}') for file in _annotations(path)}
    categories = {entry["id"]: str(entry["name"]) for each in documents.values() for entry in each["categories"]}
    numbers = {identity: number for number, identity in enumerate(sorted(categories))}
    result = LayoutResult("coco", target_names=tuple(categories[identity] for identity in numbers))
    for file, document in documents.items():
        try:
            _add_images(result, path, file, document, numbers)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} is not as COCO writes it: an entry lacks {error}") from error
    result.notes.append(f"classes: {', '.join(f'{number} {name}' for number, name in enumerate(result.target_names))}")
    return result


def _classes(path: Path) -> list[tuple[Split, Path]]:
    tops = folders(path)
    if tops and all(top.name.lower() in SPLIT_NAMES for top in tops):
        return [(SPLIT_NAMES[top.name.lower()], folder) for top in tops for folder in folders(top)]
    return [("train", folder) for folder in tops]


def _annotations(path: Path) -> list[Path]:
    places = [path, *(folder for folder in folders(path) if folder.name.lower() in ("annotations", *SPLIT_NAMES))]
    files = [path] if path.is_file() else [file for place in places for file in visible(place)]
    found = [file for file in files if file.suffix.lower() == ".json" and _has_keys(file)]
    return [file for file in found if file.name.startswith("instances")] or found  # not key points of the same images


def _has_keys(file: Path) -> bool:
    text = file.read_bytes()
    return all(f'"{key}"'.encode() in text for key in COCO_KEYS)


def _add_images(
    result: LayoutResult, path: Path, file: Path, document: Mapping[str, Any], numbers: Mapping[int, int]
) -> None:
    boxes: dict[Any, list[tuple[float, ...]]] = {}
    crowds = flat = 0
    for entry in document["annotations"]:
        x, y, width, height = entry["bbox"]
        crowds += bool(entry.get("iscrowd"))
        flat += not (width > 0 and height > 0)
        if not entry.get("iscrowd") and width > 0 and height > 0:
            box = (
                float(x),
                float(y),
                0.0,
                float(x + width),
                float(y + height),
                1.0,
                float(numbers[entry["category_id"]]),
            )
            boxes.setdefault(entry["image_id"], []).append(box)
    if crowds or flat:
        result.notes.append(f"{file.name}: {crowds} boxes around crowds and {flat} without an extent are left out")
    folder = _folder_of_images(path, file, [entry["file_name"] for entry in document["images"][:1]])
    words = [*re.split(r"[^a-z]+", file.stem.lower()), file.parent.name.lower()]
    named: list[Split] = [SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES]
    for entry in document["images"]:
        image = folder / entry["file_name"]
        subject = "_".join((*Path(entry["file_name"]).parts[:-1], stem(image)))
        result.add(subject, named[0] if named else "train", image, {"boxes": tuple(boxes.pop(entry["id"], ()))})
    if boxes:
        found = f"has boxes for images that it does not list: {', '.join(map(str, list(boxes)[:5]))}"
        result.refuse(file.name, BadFileError(file, found, "list them under images, or take their boxes out"))


def _folder_of_images(path: Path, file: Path, names: list[str]) -> Path:
    root = path.parent if path.is_file() else path
    for folder in _likely(root, file):
        if all((folder / name).is_file() for name in names):
            return folder
    raise ValueError(f"{file} lists {names[0]}, which is in no folder of {root}; put the images beside it")


def _likely(root: Path, file: Path) -> Iterator[Path]:
    near = [*folders(root), *folders(root / "images"), *folders(root.parent)]
    yield from sorted(near, key=lambda folder: folder.name.lower() not in file.stem.lower())
    yield from (file.parent, root, root.parent)


IMAGEFOLDER = Layout(
    "imagefolder", "CLASS/NAME.png or .jpg, perhaps in train, val and test", is_imagefolder, read_imagefolder
)
COCO = Layout("coco", "annotations/*.json with images, annotations and categories", is_coco, read_coco)
