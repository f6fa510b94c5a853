"""Left and right: parting a structure that was drawn undivided, and telling labels whose sides are swapped."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import ndimage

from lightning_atlas.data.cases import Case, Mark
from lightning_atlas.data.labels.vocabulary import mirror, side
from lightning_atlas.data.store.reading import read_case

MOST = 0.8
"""A component with a larger share of a pair is taken for both sides grown together, or for a side alone."""


def split_by_side(
    mask: Bool[np.ndarray, "i j k"], affine: Float[np.ndarray, "4 4"]
) -> tuple[Bool[np.ndarray, "i j k"], Bool[np.ndarray, "i j k"]] | None:
    """Part the mask of a pair into left and right by connected components (26 neighbours).

    The components are ordered from left to right by their centres in millimetres, and parted where the two heaps are
    farthest apart for their sizes (Otsu's criterion), so that neither the body's position in the scan nor a splinter
    decides.

    Args:
        mask: True inside the pair.
        affine: From voxels to RAS millimetres.

    Returns:
        Left and right (both empty for an empty mask), or `None` where no such parting can be trusted: one component
        holds more than 0.8 of the pair, or the two parts do not lie side by side.
    """
    components = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=np.ones((3, 3, 3)), output=components)
    if not (count := int(components.max())):
        return mask.copy(), mask.copy()
    inside = np.nonzero(mask)
    owner = components[inside]
    right_mm = sum((affine[0, axis] * inside[axis] for axis in range(3)), np.full(len(owner), affine[0, 3]))
    sizes = np.bincount(owner, minlength=count + 1)[1:]
    centres = np.bincount(owner, weights=right_mm, minlength=count + 1)[1:] / sizes
    if sizes.max() > MOST * sizes.sum():
        return None
    is_left = _left_heap(centres, sizes)
    left = is_left[owner - 1]
    midline_mm = (right_mm[left].mean() + right_mm[~left].mean()) / 2
    if min((right_mm[left] < midline_mm).mean(), (right_mm[~left] > midline_mm).mean()) < MOST:
        return None
    return np.isin(components, 1 + np.flatnonzero(is_left)), np.isin(components, 1 + np.flatnonzero(~is_left))


def side_pairs(values: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return the left name of each pair whose two sides have a value -> the values of left and right."""
    pairs: dict[str, tuple[int, int]] = {}
    for name, value in values.items():
        other = mirror(name) if side(name) == "left" else None
        if other is not None and other in values:
            pairs[name] = (value, values[other])
    return pairs


def check_sides(
    label: Integer[np.ndarray, "i j k"], affine: Float[np.ndarray, "4 4"], pairs: Mapping[str, tuple[int, int]]
) -> list[str]:
    """Return those pairs whose left lies to the right of their right; a pair of which one is absent tells nothing.

    Args:
        label: A label map.
        affine: From voxels to RAS millimetres.
        pairs: Name of a pair -> the values of left and right; see `side_pairs`.
    """
    found = ndimage.find_objects(label)
    swapped = []
    for name, values in pairs.items():
        if all(value <= len(found) and found[value - 1] is not None for value in values):
            left, right = (_centre_mm(label, value, found[value - 1], affine) for value in values)
            if left > right:
                swapped.append(name)
    return swapped


def split_cases(cases: Sequence[Case], names: Sequence[str], folder: Path) -> tuple[list[Case], list[str]]:
    """Part paired structures by side, as masks with names of their own beside the undivided one.

    Args:
        cases: Their scans and labels are read.
        names: Structures to part: `kidney` gets `kidney_left` and `kidney_right`.
        folder: Where the masks are written.

    Returns:
        The cases with the masks, and a line for each structure that was left undivided.
    """
    parted, notes = [], []
    for case in cases:
        drawing = read_case(case)[1]
        masks: dict[str, Mark] = {}
        for name in [each for each in names if each in drawing.names]:
            inside = (drawing.states == 1)[:, drawing.names.index(name)][drawing.rows]
            sides = split_by_side(inside, drawing.affine)
            if sides is None:
                notes.append(f"{case.subject}: the two sides of {name} cannot be told apart; it stays undivided")
                continue
            for hand, mask in zip(("left", "right"), sides, strict=True):
                file = folder / f"{case.subject}_{name}_{hand}.nii.gz"
                folder.mkdir(parents=True, exist_ok=True)
                nib.Nifti1Image(mask.astype(np.uint8), drawing.affine).to_filename(file)
                masks[f"{name}_{hand}"] = Mark(file)
        drawn = None if case.drawn is None else (*case.drawn, *masks)
        parted.append(replace(case, masks={**case.masks, **masks}, drawn=drawn))
    if missing := [name for name in names if not any(f"{name}_left" in case.masks for case in parted)]:
        notes.append(f"no case was parted into sides for {', '.join(missing)}")
    return parted, notes


def _left_heap(centres: Float[np.ndarray, " n"], sizes: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Tell which components belong to the left of the parting with the largest variance between its two sides."""
    order = np.argsort(centres, kind="stable")
    weights, moments = np.cumsum(sizes[order]), np.cumsum(sizes[order] * centres[order])
    below, above = weights[:-1], weights[-1] - weights[:-1]
    apart = moments[:-1] / below - (moments[-1] - moments[:-1]) / above
    first_right = 1 + int(np.argmax(below * above * apart**2))
    left = np.zeros(len(centres), dtype=bool)
    left[order[:first_right]] = True
    return left


def _centre_mm(label: np.ndarray, value: int, box: tuple[slice, ...], affine: np.ndarray) -> float:
    voxels = np.argwhere(label[box] == value) + [each.start for each in box]
    return float(affine[0] @ [*voxels.mean(axis=0), 1])
