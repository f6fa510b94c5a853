"""A `dataset.json` that lists its files: the Medical Segmentation Decathlon, AMOS, and people's own.

Source: the `dataset.json` of http://medicaldecathlon.com, which writes values before names; others write names first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_atlas.data.cases import Split
from lightning_atlas.data.formats import stem
from lightning_atlas.data.sources.layouts.label_table import channel_names, modality_of, read_labels
from lightning_atlas.data.sources.layouts.nnunet import is_nnunet
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.tables import expect, read_json

TABLE = "dataset.json"
LISTS: dict[str, Split] = {"training": "train", "validation": "val", "test": "test"}


def is_listed(path: Path) -> bool:
    """Tell whether a `dataset.json` has a list of training cases, and its files are not named as nnU-Net's."""
    return lists_files(path) and not is_nnunet(path) and not _values_first(path)


def is_decathlon(path: Path) -> bool:
    """Tell whether it writes values before names, as the Decathlon does."""
    return lists_files(path) and not is_nnunet(path) and _values_first(path)


def read_decathlon(path: Path) -> LayoutResult:
    """List the cases of a task of the Decathlon."""
    return replace(read_listed(path), layout="decathlon")


def read_listed(path: Path) -> LayoutResult:
    """List the cases of a `dataset.json`; whether their files are there is for the checks to say.

    Raises:
        ValueError: It has a fault; the message has the entry.
    """
    file = path / TABLE
    document = expect(read_json(file), dict, str(file), '{"labels": {...}, "training": [...]}')
    table, channels = read_labels(file, document), channel_names(document)
    facts = {"values": table.values, "modality": modality_of(channels), "ignore_value": table.ignore_value}
    result = LayoutResult("dataset.json", unions=table.unions)
    for key, split in LISTS.items():
        for place, entry in _entries(file, key, document.get(key) or []):
            named = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
            files = [path / expect(name, str, f"{place}, image", '"./imagesTr/a.nii.gz"') for name in named]
            by_number = {channels.get(number, str(number)): each for number, each in enumerate(files)}
            label = entry.get("label") and path / expect(
                entry["label"], str, f"{place}, label", '"./labelsTr/a.nii.gz"'
            )
            patient = {"patient": str(entry["patient"])} if "patient" in entry else {}
            image = files[0] if len(files) == 1 else by_number
            result.add(str(entry.get("id", stem(files[0]))), split, image, label or None, **facts, **patient)
    if len(channels) > 1 and any(isinstance(case.image, Path) for case in result.cases):
        result.notes.append(f"each file holds {len(channels)} channels: {', '.join(channels.values())}")
    return result


def lists_files(path: Path) -> bool:
    """Tell whether there is a `dataset.json` with labels and a list of training cases."""
    document = _document(path)
    return isinstance(document.get("training"), list) and isinstance(document.get("labels"), Mapping)


def _values_first(path: Path) -> bool:
    return all(key.isdecimal() for key in _document(path).get("labels", ()))


def _document(path: Path) -> Mapping[str, Any]:
    document = read_json(path / TABLE) if (path / TABLE).is_file() else None
    return document if isinstance(document, Mapping) else {}


def _entries(file: Path, key: str, listed: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    example = '[{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]'
    for number, entry in enumerate(expect(listed, list, f"{file}, {key}", example), start=1):
        place = f"{file}, {key} {number}"
        entry = {"image": entry} if isinstance(entry, str) else expect(entry, Mapping, place, example[1:-1])
        if not entry.get("image"):
            raise ValueError(
                f"{place} has no image, but {', '.join(entry) or 'nothing'}; write it like {example[1:-1]}"
            )
        yield place, entry


DECATHLON = Layout(
    "decathlon", "dataset.json with labels (value to name) and training, a list of files", is_decathlon, read_decathlon
)
LISTED = Layout(
    "dataset.json", "dataset.json with labels (name to value) and training, a list of files", is_listed, read_listed
)
