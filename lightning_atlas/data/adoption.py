"""Preprocessing that gives a network what its weights expect, in the place of what a recipe has."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torchio.transforms import (
    Clamp,
    Resample,
    RescaleIntensity,
    Resize,
    ToCanonical,
    ToOrientation,
    ToReferenceSpace,
    Transform,
    ZNormalization,
)
from torchio.transforms.preprocessing.intensity.normalization_transform import NormalizationTransform

from lightning_atlas.contract import PREPROCESSED, Contract, Difference, differences, in_words
from lightning_atlas.data.air import RescaleAboveAir
from lightning_atlas.data.pipeline import flat
from lightning_atlas.data.slice_spacing import ResampleSlices

UNITS = ("window", "linear")
"""Normalizations that mean something in the units of one modality only."""
PERCENTILES = (0.5, 99.5)
"""What stands in for a window where a scan has no such units."""
KINDS: dict[str, type[Transform]] = {
    each.__name__: each
    for each in (Clamp, Resample, RescaleAboveAir, RescaleIntensity, ToCanonical, ToOrientation, ZNormalization)
}
PARTS: tuple[tuple[tuple[str, ...], tuple[type[Transform], ...]], ...] = (
    (("orientation",), (ToOrientation,)),
    (("spacing_mm",), (Resample, ResampleSlices, Resize, ToReferenceSpace)),
    (("normalization", "window", "range"), (Clamp, NormalizationTransform)),
)
"""Keys of a contract, and the transforms that settle them; all else is kept."""


class Step(NamedTuple):
    """A transform as a recipe has it.

    Args:
        name: Of the class.
        settings: Its arguments.
    """

    name: str
    settings: Mapping[str, Any]


def expected_of(weights: Contract, modality: str | None, ours: Contract | None = None) -> Contract:
    """Return what weights expect of scans of a modality.

    Where the weights' window is in the units of another modality, such as a photograph's, a CT recipe's own window of
    Hounsfield units stands in for it, and of other scans the percentiles 0.5 and 99.5 of each volume's voxels that are
    no air; the range that the network sees stays.

    Args:
        weights: Their contract.
        modality: Of the scans.
        ours: What a recipe makes of them, if there is one.
    """
    if weights.normalization not in UNITS or modality in (None, weights.modality) or weights.modality is None:
        return weights
    if modality == "CT" and ours is not None and ours.normalization in UNITS:
        return replace(weights, normalization=ours.normalization, window=ours.window)
    return replace(weights, normalization="percentiles above air", window=PERCENTILES)


def adopt_preprocessing(
    preprocess: Sequence[Transform], ours: Contract, weights: Contract
) -> tuple[list[Transform], list[str]]:
    """Return a recipe's transforms with those in which it differs from the weights replaced, and what that changed.

    Args:
        preprocess: The recipe's.
        ours: The contract that they make.
        weights: What the weights expect; what they do not state stays as the recipe has it.

    Raises:
        ValueError: The weights expect what no transform here makes.
    """
    expected = expected_of(weights, ours.modality, ours)
    found = {each.key: each for each in differences(expected, ours) if each.key in PREPROCESSED}
    if _percentiles_already(expected, weights, ours):
        found.pop("normalization", None)
    transforms = list(flat(preprocess)) if found else list(preprocess)
    for keys, kinds in PARTS:
        if not found.keys() & set(keys):
            continue
        place = next((n for n, each in enumerate(transforms) if isinstance(each, kinds)), None)
        kept = [each for each in transforms if not isinstance(each, kinds)]
        # Geometry in front, in the order of PARTS; intensities where the recipe's were, or last.
        place = {"orientation": 0, "spacing_mm": _after(kept, ToOrientation)}.get(keys[0], place)
        place = len(kept) if place is None else place
        made = [KINDS[step.name](**step.settings) for step in steps_for(expected, keys[0])]
        transforms = [*kept[:place], *made, *kept[place:]]
    settled = tuple(kind for _, kinds in PARTS for kind in kinds)
    others = [type(each).__name__ for each in transforms if not isinstance(each, settled)] if found else []
    return transforms, [*map(_told, found.values()), *([f"kept: {', '.join(others)}"] if others else [])]


def steps_for(expected: Contract, key: str) -> list[Step]:
    """Return the transforms that make one part of a contract: `orientation`, `spacing_mm` or `normalization`.

    Raises:
        ValueError: The normalization is none that a transform here makes, or lacks its window or range.
    """
    if key == "orientation":
        canonical = expected.orientation == "RAS"
        return [Step("ToCanonical", {}) if canonical else Step("ToOrientation", {"orientation": expected.orientation})]
    if key == "spacing_mm":
        target = [_plain(each) for each in expected.spacing_mm or ()]
        return [Step("Resample", {"target": target[0] if len(set(target)) == 1 else target})]
    if expected.normalization == "z-score":
        return [Step("ZNormalization", {})]
    known = (*UNITS, "percentiles", "percentiles above air")
    if expected.normalization not in known or expected.window is None or expected.range is None:
        raise ValueError(
            f"the weights expect normalization {expected.normalization}, window {expected.window}, range "
            f"{expected.range}; what can be taken over is z-score, or {', '.join(known)} with window and range. Write "
            "the transforms into data.init_args.preprocess, and say model.init_args.contract: match"
        )
    ends, limits = ((_plain(pair[0]), _plain(pair[1])) for pair in (expected.range, expected.window))
    if expected.normalization == "percentiles":
        return [Step("RescaleIntensity", {"out_min_max": ends, "percentiles": limits})]
    if expected.normalization == "percentiles above air":
        return [Step("RescaleAboveAir", {"out_min_max": ends, "percentiles": limits})]
    clip = [Step("Clamp", {"out_min": limits[0], "out_max": limits[1]})] if expected.normalization == "window" else []
    return [*clip, Step("RescaleIntensity", {"out_min_max": ends, "in_min_max": limits})]


def _percentiles_already(expected: Contract, weights: Contract, ours: Contract) -> bool:
    """Tell whether the recipe itself stands percentiles in for a window: of all voxels will do."""
    stand_in = expected.normalization != weights.normalization
    return (
        stand_in
        and ours.normalization == "percentiles"
        and (expected.window, expected.range) == (ours.window, ours.range)
    )


def _after(transforms: Sequence[Transform], kind: type[Transform]) -> int:
    return max((n + 1 for n, each in enumerate(transforms) if isinstance(each, kind)), default=0)


def _told(difference: Difference) -> str:
    ours = "what the files have" if difference.data is None else in_words(difference.data)
    return f"{difference.key} {in_words(difference.weights)} instead of {ours}"


def _plain(value: float) -> int | float:
    """Return a whole number as one, as recipes have it: prepared scans are found by how a transform is written."""
    return int(value) if float(value).is_integer() else value
