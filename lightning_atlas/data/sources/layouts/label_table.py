"""The table of labels and channels in a `dataset.json`, whichever of its dialects it is in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_atlas.data.sources.tables import expect, named_values

MODALITIES = {
    "CT": {"ct"},
    "MR": {
        "mr",
        "mri",
        "t1",
        "t1w",
        "t1c",
        "t1ce",
        "t1gd",
        "t1n",
        "t2",
        "t2w",
        "t2f",
        "flair",
        "adc",
        "dwi",
        "pd",
        "pdw",
    },
    "PET": {"pet", "pt"},
}
IGNORE = "ignore"
"""What nnU-Net calls the value of voxels on which nobody decided."""


@dataclass(frozen=True)
class LabelTable:
    """What the values of label files mean.

    Args:
        values: Name -> value.
        ignore_value: Value of voxels on which nobody decided.
        unions: Name -> names whose union it is.
    """

    values: dict[str, int] = field(default_factory=dict)
    ignore_value: int | None = None
    unions: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_labels(path: Path, document: Mapping[str, Any]) -> LabelTable:
    """Return the table under `labels`: name to value, value to name, or name to the values of a region.

    Raises:
        ValueError: It is none of these.
    """
    place = f"{path}, labels"
    told = expect(document.get("labels"), Mapping, place, '{"background": 0, "liver": 1}')
    if all(key.isdecimal() for key in told):
        names = [expect(name, str, f"{place} {value}", '"liver"') for value, name in told.items()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{place}: several values are called {twice[0]!r}; give each value a name of its own")
        told = {name: int(value) for value, name in told.items()}
    regions = {name: _numbers(f"{place} {name!r}", value) for name, value in told.items()}
    ignore = regions.pop(IGNORE, ())
    singles = {name: values[0] for name, values in regions.items() if len(values) == 1 and values[0] != 0}
    several = {name: values for name, values in regions.items() if len(values) > 1}
    parts = {**_parts(several, set(singles.values())), **singles}
    names_of = {value: name for name, value in parts.items()}
    return LabelTable(
        named_values(parts, place),
        ignore[0] if ignore else None,
        {name: tuple(names_of[value] for value in values) for name, values in several.items()},
    )


def channel_names(document: Mapping[str, Any]) -> dict[int, str]:
    """Return number -> name of the channels, from `channel_names` or the older `modality`."""
    told = document.get("channel_names") or document.get("modality") or {}
    if isinstance(told, Mapping):
        return {int(number): str(name) for number, name in told.items() if str(number).isdecimal()}
    return dict(enumerate(map(str, told))) if isinstance(told, list) else {0: str(told)}


def modality_of(names: Mapping[int, str]) -> str | None:
    """Return `CT`, `MR` or `PET` if all channels are of that kind by their names."""
    kinds = {name.strip().lower() for name in names.values()}
    return next((modality for modality, known in MODALITIES.items() if kinds and kinds <= known), None)


def _numbers(place: str, told: Any) -> tuple[int, ...]:
    listed = told if isinstance(told, list) and told else [told]
    numbers = [int(each) if isinstance(each, str) and each.isdecimal() else each for each in listed]
    return tuple(expect(each, int, place, "1, or [1, 2] for a region") for each in numbers)


def _parts(several: Mapping[str, tuple[int, ...]], taken: set[int]) -> dict[str, int]:
    """Name each value that only regions have after the smallest of them."""
    parts: dict[str, int] = {}
    for value in sorted({value for values in several.values() for value in values} - taken):
        smallest = min(
            (name for name, values in several.items() if value in values), key=lambda name: len(several[name])
        )
        parts[f"{smallest}_{value}"] = value
    return parts
