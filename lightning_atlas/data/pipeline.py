"""What a recipe's list of TorchIO transforms means: the contract it makes, and what it must not do."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torchio.transforms import (
    Affine,
    AffineElasticDeformation,
    Clamp,
    ElasticDeformation,
    Flip,
    LabelTransform,
    OneOf,
    RandomFlip,
    Resample,
    RescaleIntensity,
    Resize,
    ToOrientation,
    ToReferenceSpace,
    Transform,
    ZNormalization,
)
from torchio.transforms.augmentation import RandomTransform

from lightning_atlas.contract import Contract
from lightning_atlas.data.classes import mirrored_pair

UNTOLD = (Flip, Affine, ElasticDeformation, AffineElasticDeformation)
"""They move voxels and leave the affine as it was, so no prediction could find its way back to the file."""
SIDES = {"L": "LR", "R": "LR", "P": "PA", "A": "PA", "I": "IS", "S": "IS"}


def derive_contract(
    classes: Sequence[str], modality: str | None, preprocess: Sequence[Transform], augment: Sequence[Transform]
) -> Contract:
    """Return what a network trained through these transforms expects of an image.

    Raises:
        ValueError: A transform must not stand where it stands.
    """
    check_preprocess(preprocess)
    orientation, spacing_mm = _geometry(preprocess)
    axes = mirrored_axes(augment, orientation or "RAS")
    check_mirroring(axes, orientation or "RAS", classes)
    return Contract(
        classes=tuple(classes),
        modality=modality,
        orientation=orientation,
        spacing_mm=spacing_mm,
        mirrored_axes=axes,
        **_intensities(preprocess),
    )


def check_preprocess(preprocess: Sequence[Transform]) -> None:
    """Refuse what is random, what changes labels, and what hides a movement of voxels.

    Raises:
        ValueError: Names the transform and where it belongs.
    """
    for transform in flat(preprocess):
        name = type(transform).__name__
        if isinstance(transform, RandomTransform) or transform.probability < 1:
            raise ValueError(f"preprocess: {name} draws at random, but a scan is prepared once; move it to augment")
        if isinstance(transform, LabelTransform):
            raise ValueError(f"preprocess: {name} changes labels; say with `classes` which structures belong together")
        if isinstance(transform, UNTOLD):
            raise ValueError(f"preprocess: {name} moves voxels without telling the affine; take it out")


def flat(transforms: Sequence[Transform]) -> Iterator[Transform]:
    """Walk through composed transforms in order."""
    for transform in transforms:
        inner = getattr(transform, "transforms", None)
        if isinstance(inner, Sequence):
            yield from flat(inner)
        elif isinstance(transform, OneOf):
            yield from flat(list(transform.transforms_dict))
        else:
            yield transform


def mirrored_axes(augment: Sequence[Transform], orientation: str) -> tuple[str, ...]:
    """Return the axes along which training mirrors."""
    found = {
        _axis(axis, orientation)
        for transform in flat(augment)
        if isinstance(transform, RandomFlip | Flip)
        for axis in cast("tuple[int | str, ...]", transform.axes)
    }
    return tuple(axis for axis in "ijk" if axis in found)


def check_mirroring(axes: Sequence[str], orientation: str, classes: Sequence[str]) -> None:
    """Refuse to mirror left to right where classes have sides.

    Raises:
        ValueError: Names two such classes and what to type.
    """
    side = _axis("L", orientation)
    pair = mirrored_pair(classes)
    if side in axes and pair:
        others = [n for n, axis in enumerate("ijk") if axis != side]
        raise ValueError(
            f"augment: RandomFlip mirrors along {side} (left to right), but {pair[0]} and {pair[1]} are two classes, "
            f"and a mirrored one would keep its name; use axes: {others}, or merge the two in `classes`"
        )


def _axis(axis: int | str, orientation: str) -> str:
    if isinstance(axis, int):
        return "ijk"[axis]
    pair = SIDES.get(axis[0].upper(), "")
    return next((name for name, side in zip("ijk", orientation, strict=True) if side in pair), "i")


def _geometry(preprocess: Sequence[Transform]) -> tuple[str | None, tuple[float, float, float] | None]:
    orientation, spacing_mm = None, None
    for transform in flat(preprocess):
        if isinstance(transform, ToOrientation):
            turned = spacing_mm is not None and len(set(spacing_mm)) > 1
            orientation, spacing_mm = transform.orientation, None if turned else spacing_mm
        elif isinstance(transform, Resample):
            spacing_mm = _spacing(transform.target)
        elif isinstance(transform, Resize | ToReferenceSpace):
            spacing_mm = None
    return orientation, spacing_mm


def _spacing(target: object) -> tuple[float, float, float] | None:
    if isinstance(target, int | float):
        return float(target), float(target), float(target)
    if isinstance(target, list | tuple) and len(target) == 3:
        return float(target[0]), float(target[1]), float(target[2])
    return None


def _intensities(preprocess: Sequence[Transform]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    clamped: tuple[object, object] = (None, None)
    for transform in flat(preprocess):
        if isinstance(transform, Clamp):
            clamped = (transform.out_min, transform.out_max)
            if told.get("normalization") == "linear" and clamped == told["range"]:
                told["normalization"] = "window"
        elif isinstance(transform, RescaleIntensity):
            told = _rescaling(transform, clamped)
        elif isinstance(transform, ZNormalization):
            told = {"normalization": "z-score"}
    return told


def _rescaling(transform: RescaleIntensity, clamped: tuple[object, object]) -> dict[str, Any]:
    to = (float(transform.out_min), float(transform.out_max))
    if transform.in_min_max is None:
        low, high = transform.percentiles
        return {"normalization": "percentiles", "window": (float(low), float(high)), "range": to}
    low, high = transform.in_min_max
    # TorchIO's in_min_max does not clip: without a Clamp the ends of the window are not the ends of the range
    kind = "window" if clamped == (low, high) else "linear"
    return {"normalization": kind, "window": (float(low), float(high)), "range": to}
