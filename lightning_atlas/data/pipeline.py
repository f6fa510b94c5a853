"""What a recipe's list of TorchIO transforms means: the contract it makes, and what it must not do."""

from collections.abc import Iterator, Sequence
from itertools import combinations
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
    Transpose,
    ZNormalization,
)
from torchio.transforms.augmentation import RandomTransform

from lightning_atlas.contract import Contract, lone_sides, mirror_image, side_pairs
from lightning_atlas.data.air import RescaleAboveAir
from lightning_atlas.data.augmentation.augment import BatchAugmentation
from lightning_atlas.data.slice_spacing import ResampleSlices

UNTOLD = (Flip, Affine, ElasticDeformation, AffineElasticDeformation)
"""They move voxels and leave the affine as it was, so no prediction could find its way back to the file."""
SIDES = {"L": "LR", "R": "LR", "P": "PA", "A": "PA", "I": "IS", "S": "IS"}


def derive_contract(
    classes: Sequence[str],
    modality: str | None,
    preprocess: Sequence[Transform],
    augment: Sequence[Transform] | BatchAugmentation,
) -> Contract:
    """Return what a network trained through these transforms expects of an image.

    Raises:
        ValueError: A transform must not stand where it stands.
    """
    check_preprocess(preprocess)
    orientation, spacing_mm = _geometry(preprocess)
    if isinstance(augment, BatchAugmentation):
        axes, swaps = augment.mirrored_axes, augment.swap_sides
        check_mirroring("BatchAugmentation" if axes else None, classes, swaps)
    else:
        axes = mirrored_axes(augment, orientation or "RAS")
        check_mirroring(mirroring(augment, orientation or "RAS"), classes)
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
    """Return the axes along which training mirrors now and then, each without the others."""
    reversals = _reversals(augment, orientation)
    return tuple(axis for axis in "ijk" if frozenset(axis) in reversals)


def mirroring(augment: Sequence[Transform], orientation: str) -> str | None:
    """Return the name of what makes the composed map a mirroring, if anything can.

    That is an odd number of reversed axes: two are half a turn, and any turn of an odd number is a mirroring still.
    """
    if not any(len(axes) % 2 for axes in _reversals(augment, orientation)):
        return None
    makers = (type(each).__name__ for each in flat(augment) if _reversals([each], orientation) != {frozenset()})
    return ", ".join(dict.fromkeys(makers))


def check_mirroring(maker: str | None, classes: Sequence[str], swaps: bool = False) -> None:
    """Refuse to mirror where classes have sides, unless they change places.

    Args:
        maker: What mirrors; `None` where nothing does.
        classes: Names.
        swaps: Classes that are each other's mirror image change places.

    Raises:
        ValueError: Names the classes and what to type.
    """
    if maker and (pairs := side_pairs(classes)) and not swaps:
        one, other = (classes[place] for place in pairs[0])
        raise ValueError(
            f"augment: {maker} mirrors, but {one} and {other} are two classes, and a mirrored one would keep its name; "
            "use BatchAugmentation with swap_sides: true, or mirror no axis, or merge the two in `classes`"
        )
    if maker and (lone := lone_sides(classes)):
        raise ValueError(
            f"augment: {maker} mirrors, but a mirrored {lone[0]} would be a {mirror_image(lone[0])}, and that is no "
            "class; mirror no axis, or add it to `classes`"
        )


def _reversals(augment: Sequence[Transform], orientation: str) -> set[frozenset[str]]:
    """Return every set of axes that the transforms, one after the other, can leave reversed."""
    found = {frozenset[str]()}
    for transform in augment:
        own = _own_reversals(transform, orientation)
        if transform.probability < 1:
            own = own | {frozenset()}
        found = {before ^ after for before in found for after in own}
    return found


def _own_reversals(transform: Transform, orientation: str) -> set[frozenset[str]]:
    inner = getattr(transform, "transforms", None)
    if isinstance(inner, Sequence):
        return _reversals(inner, orientation)
    if isinstance(transform, OneOf):
        return {each for one in transform.transforms_dict for each in _reversals([one], orientation)}
    if isinstance(transform, RandomFlip | Flip):
        axes = sorted({_axis(axis, orientation) for axis in cast("tuple[int | str, ...]", transform.axes)})
        certain = isinstance(transform, Flip) or transform.flip_probability == 1
        counts = [len(axes)] if certain else range(len(axes) + 1)
        return {frozenset(chosen) for count in counts for chosen in combinations(axes, count)}
    if isinstance(transform, Affine):
        return {frozenset(axis for axis, factor in zip("ijk", transform.scales, strict=True) if factor < 0)}
    # exchanging i and k reverses an axis and makes a quarter turn
    return {frozenset("i")} if isinstance(transform, Transpose) else {frozenset()}


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
        elif isinstance(transform, ResampleSlices | Resize | ToReferenceSpace):
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
    clamped: tuple[float | None, float | None] = (None, None)
    for transform in flat(preprocess):
        if isinstance(transform, Clamp):
            low, high = clamped = (transform.out_min, transform.out_max)
            if told.get("normalization") == "linear" and clamped == told["range"]:
                told["normalization"] = "window"
            elif not told and low is not None and high is not None:  # in the file's own units
                ends = (float(low), float(high))
                told = {"normalization": "window", "window": ends, "range": ends}
        elif isinstance(transform, RescaleIntensity):
            told = _rescaling(transform, clamped)
        elif isinstance(transform, ZNormalization):
            told = {"normalization": "z-score"}
    return told


def _rescaling(transform: RescaleIntensity, clamped: tuple[object, object]) -> dict[str, Any]:
    to = (float(transform.out_min), float(transform.out_max))
    if transform.in_min_max is None:
        low, high = transform.percentiles
        kind = "percentiles above air" if isinstance(transform, RescaleAboveAir) else "percentiles"
        return {"normalization": kind, "window": (float(low), float(high)), "range": to}
    low, high = transform.in_min_max
    # TorchIO's in_min_max does not clip: without a Clamp the ends of the window are not the ends of the range
    kind = "window" if clamped == (low, high) else "linear"
    return {"normalization": kind, "window": (float(low), float(high)), "range": to}
