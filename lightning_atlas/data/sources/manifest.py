"""The manifest: one table that says of every subject which files it has and what was drawn on them.

As JSON::

    {
      "name": "livers",
      "datasets": {
        "clinic": {"modality": "CT", "vocabulary": null, "values": {"liver": 1, "spleen": 2}, "ignore_value": 255,
                   "drawn_on": [{"every": 5, "axis": "k", "names": ["spleen"]}]}
      },
      "subjects": [
        {"subject": "a1", "patient": "a", "split": "train", "dataset": "clinic",
         "image": "scans/a1.nii.gz", "label": "labels/a1.nii.gz",
         "masks": {"tumor": "masks/a1.nii.gz", "cyst": {"file": "a1.seg.nrrd", "value": 3, "layer": 1}},
         "drawn": ["liver", "tumor"], "target": 1, "boxes": [[10, 20, 3, 40, 55, 9, 1]]},
        {"subject": "s7_109", "image": "slices/s7/109.png", "slab": {"spacing_mm": [0.8, 0.8, 5], "offset": -32768}}
      ]
    }

Only `subject` and `image` must be there. `image` may be a table of files by channel: `{"T1": ..., "T2": ...}`. What
stands in a dataset holds for its subjects; a subject may say otherwise. `dataset` may be left out where there is one
only, `split` where a seed is to divide the patients; `fold` is the number of a published fold, from 0. `slab` reads
with a numbered picture the planes about it (`lightning_atlas.data.slab.Slab` says what may stand in it), among which
its boxes count k. Relative paths start at the manifest's folder.

As CSV: a line for each subject, with the same names as columns; a channel is a column `image:T1`, a mask a column
`mask:tumor`, a label or value of the whole scan a column `target:age`; names in `drawn` have `;` between them, as have
the numbers in `drawn_planes`, which is short for `drawn_on` with `planes`. Other cells that hold more than a word are
JSON. What holds for whole datasets stands in a JSON file of the same name beside it, with `name` and `datasets` only.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast, get_args

from lightning_atlas.data.cases import Case, DrawnOn, Mark, Source, Split
from lightning_atlas.data.slab import Slab, plane_number
from lightning_atlas.data.sources.tables import check_keys, expect, named_values, read_json, read_rows

SETTINGS = ("modality", "vocabulary", "values", "ignore_value", "drawn_on")
"""What a dataset may say for all its subjects."""
KEYS = (
    "subject",
    "patient",
    "split",
    "fold",
    "dataset",
    "image",
    "label",
    "masks",
    "drawn",
    "target",
    "boxes",
    "slab",
    *SETTINGS,
)
"""What may be said of a subject."""
JSON_CELLS = ("drawn", "fold", "target", "ignore_value", "boxes", "slab", "values", "drawn_on")
BOX_NUMBERS = (6, 7)

Told = Mapping[str, Any]


class Manifest(Source):
    """Scans that a table names, in JSON or CSV; `lightning_atlas.data.sources.manifest` says what may stand in it.

    Args:
        path: The table (.json or .csv).
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def cases(self) -> list[Case]:
        """Return the subjects in the table's order.

        Raises:
            ValueError: The table has a fault, or files that it names are missing; all of these are listed.
        """
        return present(read_manifest(self.path))

    @property
    def description(self) -> str:
        """One line for reports."""
        return f"scans of {self.path.name}"


def read_manifest(path: Path, settings: Told | None = None) -> list[tuple[str, Case]]:
    """Return the subjects of a manifest, each with its place in it; files are not looked at.

    Args:
        path: The table (.json or .csv).
        settings: What holds for all subjects of a CSV table, in place of a JSON file beside it.

    Raises:
        ValueError: Something in it cannot be read; the message has the line or the subject.
    """
    if path.suffix.lower() == ".csv":
        lines = [(f"{path}, line {number}", _from_line(path, number, row)) for number, row in read_rows(path)]
        entries, named = iter(lines), {told.get("dataset", "") for _, told in lines}
        datasets = _beside(path) if settings is None else dict.fromkeys(named, settings)
    else:
        document = expect(read_json(path), Mapping, str(path), '{"datasets": {...}, "subjects": [...]}')
        check_keys(document, ("name", "datasets", "subjects"), str(path))
        listed = expect(document.get("subjects"), list, f"{path}, subjects", '[{"subject": "a", "image": "a.nii.gz"}]')
        entries = ((_place(path, number, told), told) for number, told in enumerate(_taken_out(listed), start=1))
        datasets = _datasets(path, document)
    cases: dict[str, tuple[str, Case]] = {}
    for place, told in entries:
        told = expect(told, Mapping, place, '{"subject": "a", "image": "a.nii.gz"}')
        case = _case(place, told, datasets, path.parent)
        if case.subject in cases:
            raise ValueError(f"two subjects are called {case.subject!r}: {cases[case.subject][0]} and {place}")
        cases[case.subject] = (place, case)
    return list(cases.values())


def present(placed: list[tuple[str, Case]]) -> list[Case]:
    """Return the cases if every file of theirs is there.

    Raises:
        ValueError: Some are not; each is named with its place in the table.
    """
    named = ((place, file) for place, case in placed for file in files(case))
    lost = [f"{place}: there is no file {file}" for place, file in named if not os.path.exists(file)]  # noqa: PTH110
    if lost:
        raise ValueError("\n".join(lost))
    return [case for _, case in placed]


def files(case: Case) -> list[str]:
    """Return every file that a case names, each once."""
    named = [*case.channels.values(), case.label, *(region.mask for region in case.drawn_on)]
    masks = (mark.path for mark in case.masks.values())
    return list(dict.fromkeys([*(str(file) for file in named if file is not None), *masks]))


def _place(path: Path, number: int, told: object) -> str:
    name = told.get("subject") if isinstance(told, Mapping) else None
    return f"{path}, subject {name!r}" if name else f"{path}, entry {number} of subjects"


def _taken_out(listed: list[Any]) -> Iterator[Any]:
    # an atlas has hundreds of thousands of masks: what is read of them need not stay beside what becomes of it
    listed.reverse()
    while listed:
        yield listed.pop()


def _datasets(path: Path, document: Told) -> dict[str, Told]:
    datasets = expect(document.get("datasets", {}), Mapping, f"{path}, datasets", '{"clinic": {"modality": "CT"}}')
    for name, told in datasets.items():
        place = f"{path}, dataset {name!r}"
        check_keys(expect(told, Mapping, place, '{"modality": "CT"}'), SETTINGS, place)
    return dict(datasets)


def _beside(path: Path) -> dict[str, Told]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    document = expect(read_json(beside), Mapping, str(beside), '{"datasets": {...}}')
    check_keys(document, ("name", "datasets"), str(beside))
    return _datasets(beside, document)


def _from_line(path: Path, number: int, row: Mapping[str, str]) -> dict[str, Any]:
    place = f"{path}, line {number}"
    check_keys([column.partition(":")[0] for column in row], (*KEYS, "mask", "drawn_planes"), place)
    told: dict[str, Any] = {}
    for column, cell in row.items():
        key, _, name = column.partition(":")
        if name and key == "target":
            told.setdefault(key, {})[name] = cell or None
        elif cell:
            value = _cell(key, cell, f"{place}, {column}")
            if name and key in ("image", "mask"):
                told.setdefault("masks" if key == "mask" else key, {})[name] = value
            elif key == "drawn_planes":
                told.setdefault("drawn_on", []).append({"planes": value})
            else:
                told[key] = value
    return told


def _cell(key: str, cell: str, place: str) -> Any:
    try:
        if key in SETTINGS and cell == "null":
            return None
        if key == "drawn" and not cell.startswith("["):
            return [name.strip() for name in cell.split(";") if name.strip()]
        if key == "drawn_planes":
            return [int(plane) for plane in cell.split(";") if plane.strip()]
        if key in JSON_CELLS or (key == "mask" and cell.startswith("{")):
            return json.loads(cell)
    except ValueError as error:
        raise ValueError(f"{place} is {cell!r}, which cannot be read: {error}") from error
    return cell


def _case(place: str, told: Told, datasets: Mapping[str, Told], folder: Path) -> Case:
    check_keys(told, KEYS, place)
    if missing := [key for key in ("subject", "image") if not told.get(key)]:
        raise ValueError(f"{place} has no {' and no '.join(missing)}")
    dataset = _dataset(place, told, datasets)
    settings = {**datasets.get(dataset, {}), **told}
    split = told.get("split", "train")
    if split not in get_args(Split):
        raise ValueError(f"{place}: split {split!r} is none of {', '.join(get_args(Split))}")
    drawn_upon = told.get("label") or told.get("boxes") or "values" in told
    drawn = told.get("drawn")
    patient = told.get("patient")
    image = _image(f"{place}, image", told["image"], folder)
    try:
        return Case(
            subject=str(told["subject"]),
            split=cast(Split, split),
            image=image,
            label=_file(f"{place}, label", told["label"], folder) if told.get("label") else None,
            values=named_values(settings.get("values") or {}, f"{place}, values") if drawn_upon else {},
            modality=_word(place, settings, "modality"),
            drawn=None if drawn is None else _names(f"{place}, drawn", drawn),
            ignore_value=_whole(f"{place}, ignore_value", settings.get("ignore_value")),
            masks=_masks(f"{place}, masks", told.get("masks") or {}, folder),
            drawn_on=tuple(_drawn_on(f"{place}, drawn_on", settings.get("drawn_on") or [], folder)),
            patient=None if patient is None else str(patient),
            dataset=dataset,
            vocabulary=_word(place, settings, "vocabulary"),
            target=_target(f"{place}, target", told.get("target")),
            boxes=tuple(_box(f"{place}, boxes", box) for box in told.get("boxes") or ()),
            fold=_whole(f"{place}, fold", told.get("fold")),
            slab=None if told.get("slab") is None else _slab(f"{place}, slab", told["slab"], image),
        )
    except ValueError as error:
        raise error if str(error).startswith(place) else ValueError(f"{place}: {error}") from error


def _dataset(place: str, told: Told, datasets: Mapping[str, Told]) -> str:
    if told.get("dataset") is None and len(datasets) > 1 and "" not in datasets:
        raise ValueError(f"{place} says no dataset, and there are {', '.join(map(repr, datasets))}")
    only = "" if "" in datasets else next(iter(datasets), "")
    name = str(only if told.get("dataset") is None else told["dataset"])
    if datasets:
        check_keys([name], list(datasets), f"{place}, dataset")
    return name


def _file(place: str, told: object, folder: Path) -> Path:
    return folder / expect(told, str, place, '"scans/a.nii.gz"')


def _image(place: str, told: object, folder: Path) -> Path | dict[str, Path]:
    if isinstance(told, Mapping):
        return {str(channel): _file(f"{place} {channel}", file, folder) for channel, file in told.items()}
    return _file(place, told, folder)


def _masks(place: str, told: object, folder: Path) -> dict[str, Mark]:
    masks = {}
    for name, mark in expect(told, Mapping, place, '{"liver": "liver.nii.gz"}').items():
        here = f"{place} {name!r}"
        mark = mark if isinstance(mark, Mapping) else {"file": mark}
        check_keys(mark, ("file", "value", "layer"), here)
        file = expect(mark.get("file"), str, f"{here}, file", '"masks/a.nii.gz"')
        layer = expect(mark.get("layer", 0), int, f"{here}, layer", "0")
        masks[name] = Mark(file, _whole(f"{here}, value", mark.get("value")), layer, str(folder))
    return masks


def _drawn_on(place: str, told: object, folder: Path) -> Iterator[DrawnOn]:
    for region in [told] if isinstance(told, Mapping) else expect(told, list, place, '[{"every": 5}]'):
        region = dict(expect(region, Mapping, place, '{"every": 5}'))
        check_keys(region, [each.name for each in fields(DrawnOn)], place)
        if region.get("mask"):
            region["mask"] = _file(f"{place}, mask", region["mask"], folder)
        if region.get("planes") is not None:
            planes = expect(region["planes"], list, f"{place}, planes", "[3, 8]")
            region["planes"] = tuple(expect(plane, int, f"{place}, planes", "[3, 8]") for plane in planes)
        if region.get("names") is not None:
            region["names"] = _names(f"{place}, names", region["names"])
        _whole(f"{place}, every", region.get("every"))
        if region.get("axis", "k") not in ("i", "j", "k"):
            raise ValueError(
                f"{place}, axis is {region['axis']!r}; axes are i (to the right), j (to the front), k (up)"
            )
        yield DrawnOn(**region)


def _names(place: str, told: object) -> tuple[str, ...]:
    return tuple(expect(name, str, place, '["liver"]') for name in expect(told, list, place, '["liver"]'))


def _word(place: str, settings: Told, key: str) -> str | None:
    return None if settings.get(key) is None else expect(settings[key], str, f"{place}, {key}", '"CT"')


def _whole(place: str, told: object) -> int | None:
    return None if told is None else expect(told, int, place, "255")


def _number(place: str, told: object) -> float | int | None:
    number = None if told is None else expect(told, float, place, "1 or 2.5")
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{place} is {number}; expected a finite number")
    return number


def _target(place: str, told: object) -> float | int | dict[str, Any] | None:
    if not isinstance(told, Mapping):
        return _number(place, told)
    return {str(name): value if isinstance(value, str) else _number(place, value) for name, value in told.items()}


def _slab(place: str, given: object, middle: Path | Mapping[str, Path]) -> Slab:
    told = expect(given, Mapping, place, '{"spacing_mm": [0.8, 0.8, 5]}')
    check_keys(told, [each.name for each in fields(Slab)], place)
    sides = expect(told.get("spacing_mm"), list, f"{place}, spacing_mm", "[0.8, 0.8, 5]")
    sides = [float(expect(side, float, f"{place}, spacing_mm", "[0.8, 0.8, 5]")) for side in sides]
    if len(sides) != 3 or isinstance(middle, Mapping):
        raise ValueError(f"{place} is {told}; it has three sides of a voxel, and the image is one file")
    plane_number(middle)
    kinds = {"planes": int, "interval_mm": float, "offset": float}
    rest = {key: kind(expect(told[key], kind, f"{place}, {key}", "9")) for key, kind in kinds.items() if key in told}
    return Slab((sides[0], sides[1], sides[2]), **rest)


def _box(place: str, told: object) -> tuple[float, ...]:
    box = [expect(number, float, place, "[10, 20, 3, 40, 55, 9, 1]") for number in expect(told, list, place, "[...]")]
    if len(box) not in BOX_NUMBERS or not all(low < high for low, high in zip(box[:3], box[3:6], strict=True)):
        raise ValueError(f"{place} has {told}; a box is [i0, j0, k0, i1, j1, k1, class], each 0 below its 1, in voxels")
    return tuple(map(float, box))
