"""Writes cases as a manifest; `lightning_atlas.data.sources.manifest` says what stands in it, and reads it."""

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lightning_atlas.data.cases import Case, Mark
from lightning_atlas.data.sources.manifest import KEYS, SETTINGS, Told

EMPTY = (None, [], {})


def write_manifest(path: Path, cases: Sequence[Case], name: str = "") -> None:
    """Write cases as a manifest that reads back as the same cases: JSON, or CSV with a JSON file beside it.

    Args:
        path: The table to write (.json or .csv); files inside its folder are named relative to it.
        cases: The subjects.
        name: Name of the whole.

    Raises:
        ValueError: A case is simulated, or one of several datasets has no name.
    """
    if simulated := [case.subject for case in cases if case.variation is not None]:
        raise ValueError(f"{simulated[0]} is simulated and has no files of its own, so that no manifest can name it")
    folder = path.parent.absolute()
    datasets = {dataset: _shared(cases, dataset, folder) for dataset in dict.fromkeys(case.dataset for case in cases)}
    if len(datasets) > 1 and "" in datasets:
        raise ValueError(f"{path} has cases of {', '.join(filter(None, datasets))} and of a dataset without a name")
    subjects = [_told(case, datasets, folder) for case in cases]
    head = {"name": name or path.stem, "datasets": datasets}
    if path.suffix.lower() == ".csv":
        path.with_suffix(".json").write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
        _write_rows(path, [_row(told) for told in subjects])
        return
    lines = ",\n".join(f"    {json.dumps(told)}" for told in subjects)  # a line a subject, to be found and edited
    text = json.dumps(head, indent=2).removesuffix("\n}")
    path.write_text(f'{text},\n  "subjects": [\n{lines}\n  ]\n}}\n', encoding="utf-8")


def _shared(cases: Sequence[Case], dataset: str, folder: Path) -> dict[str, Any]:
    """Return of each setting the most frequent value among the cases to which it applies."""
    counts = {key: Counter[str]() for key in SETTINGS}
    for case in cases:
        if case.dataset == dataset:
            for key, value in _settings(case, folder).items():
                if key != "values" or case.label or case.boxes:
                    counts[key][json.dumps(value)] += 1
    common = {key: json.loads(count.most_common(1)[0][0]) for key, count in counts.items() if count}
    return {key: value for key, value in common.items() if value not in EMPTY}


def _settings(case: Case, folder: Path) -> dict[str, Any]:
    regions: list[dict[str, Any]] = []
    for region in case.drawn_on:
        told = {each.name: getattr(region, each.name) for each in fields(region)}
        told = {key: _near(value, folder) if isinstance(value, Path) else value for key, value in told.items()}
        regions.append(
            {key: list(value) if isinstance(value, tuple) else value for key, value in told.items() if value}
        )
    return {
        "modality": case.modality,
        "vocabulary": case.vocabulary,
        "values": dict(case.values),
        "ignore_value": case.ignore_value,
        "drawn_on": regions,
    }


def _told(case: Case, datasets: Mapping[str, Told], folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = {"subject": case.subject, "patient": case.patient, "split": case.split}
    told["dataset"] = case.dataset if len(datasets) > 1 else None
    told["image"] = _near(case.image, folder)
    told["label"] = _near(case.label, folder)
    told["masks"] = {name: _mark(mark, folder) for name, mark in case.masks.items()} or None
    told["drawn"] = None if case.drawn is None else list(case.drawn)
    told["fold"], told["target"] = case.fold, dict(case.target) if isinstance(case.target, Mapping) else case.target
    told["boxes"] = [list(box) for box in case.boxes] or None
    told["slab"] = None if case.slab is None else asdict(case.slab)
    told = {key: value for key, value in told.items() if value is not None}
    for key, own in _settings(case, folder).items():
        applies = key != "values" or case.label or case.boxes
        shared = datasets[case.dataset].get(key) if applies else None
        if own != shared and not (own in EMPTY and shared in EMPTY):
            told[key] = own
    return told


def _near(file: Path | Mapping[str, Path] | None, folder: Path) -> Any:
    if isinstance(file, Mapping):
        return {channel: _near(each, folder) for channel, each in file.items()}
    if file is None:
        return None
    whole = file.absolute()
    return (whole.relative_to(folder) if whole.is_relative_to(folder) else whole).as_posix()


def _mark(mark: Mark, folder: Path) -> Any:
    file = _near(mark.file, folder)
    return file if mark == Mark(mark.path) else {"file": file, "value": mark.value, "layer": mark.layer}


def _row(told: Told) -> dict[str, str]:
    row: dict[str, str] = {}
    for key, value in told.items():
        if key in ("image", "masks", "target") and isinstance(value, dict):
            prefix = "mask" if key == "masks" else key
            row |= {f"{prefix}:{name}": "" if each is None else _cell(each) for name, each in value.items()}
        elif key == "drawn" and value and all(re.fullmatch(r"[^;\[\s]([^;]*[^;\s])?", name) for name in value):
            row[key] = ";".join(value)
        else:
            row[key] = _cell(value)
    return row


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    used = dict.fromkeys(column for row in rows for column in row)
    columns = sorted(used, key=lambda column: KEYS.index(column.partition(":")[0].replace("mask", "masks")))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
