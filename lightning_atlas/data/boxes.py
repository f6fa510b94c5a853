"""Where boxes go when voxels move: exact where axes stay axes, else the least box that holds the moved one.

A box reaches from corner to corner of voxels (see `lightning_atlas.types.Boxes`), while an affine speaks of their
centres, so a corner lies half a voxel before the centre of the same number.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torchio as tio
from jaxtyping import Float, Integer
from torch import Tensor
from torchio.transforms import (
    Affine,
    Crop,
    CropOrPad,
    Flip,
    IntensityTransform,
    Pad,
    RandomAffine,
    RandomAnisotropy,
    RandomFlip,
    Transform,
)

from lightning_atlas.types import Boxes

Shape = tuple[int, int, int]
KNOWN = (Affine, Crop, CropOrPad, Flip, IntensityTransform, Pad, RandomAffine, RandomAnisotropy, RandomFlip)
"""Transforms of TorchIO through which boxes are carried."""
UNMOVED = "Resample"
"""Stands in a history twice where `RandomAnisotropy` went to a coarser grid and back."""


def make_boxes(told: Sequence[Sequence[int | float]]) -> Boxes:
    """Return boxes of rows `i0 j0 k0 i1 j1 k1`, perhaps with the number of their class behind."""
    rows = torch.tensor([[*row, 0.0][:7] for row in told], dtype=torch.float64).reshape(-1, 7)
    return Boxes(rows[:, :6].float(), rows[:, 6].long())


def volumes(corners: Float[Tensor, "boxes 6"]) -> Float[Tensor, " boxes"]:
    """Return how many voxels lie in each box; 0 where a box is turned inside out."""
    return (corners[:, 3:] - corners[:, :3]).clamp(min=0).prod(dim=1)


def shifted(boxes: Boxes, by: Sequence[int | float] | np.ndarray) -> Boxes:
    """Return boxes that lie so many voxels farther along i, j, k."""
    step = torch.as_tensor(np.tile(np.asarray(by, dtype=np.float32), 2), device=boxes.corners.device)
    return boxes._replace(corners=boxes.corners + step)


def carried(boxes: Boxes, matrix: Float[np.ndarray, "4 4"]) -> Boxes:
    """Return boxes on another grid.

    Args:
        boxes: In voxels of one grid.
        matrix: Takes (centres of) voxels of that grid to those of the other.
    """
    corners = boxes.corners
    kind = torch.float32 if corners.device.type == "mps" else torch.float64
    low, high = corners.to(kind).split(3, dim=1)
    map_ = torch.from_numpy(np.asarray(matrix, dtype=np.float64)).to(corners.device, kind)
    # sums, not matrix products: those may be rounded to ten bits on a GPU
    middle = (map_[:3, :3] * ((low + high) / 2 - 0.5)[:, None]).sum(dim=2) + map_[:3, 3] + 0.5
    half = (map_[:3, :3].abs() * ((high - low) / 2)[:, None]).sum(dim=2)
    return boxes._replace(corners=torch.cat([middle - half, middle + half], dim=1).to(corners.dtype))


def between(source: Float[np.ndarray, "4 4"], target: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """Return what takes voxels of a grid to those of another at the same place; both are given by their affines."""
    return np.linalg.inv(np.asarray(target, dtype=np.float64)) @ np.asarray(source, dtype=np.float64)


def flipped(boxes: Boxes, axes: Sequence[int], shape: Sequence[int]) -> Boxes:
    """Return the boxes of an image that is reversed along some axes (0, 1, 2)."""
    return carried(boxes, reversal(axes, shape))


def reversal(axes: Sequence[int], shape: Sequence[int]) -> Float[np.ndarray, "4 4"]:
    """Return what takes voxels of an image to those of the same one reversed along some axes (0, 1, 2), and back."""
    matrix = np.eye(4)
    for axis in axes:
        matrix[axis, axis], matrix[axis, 3] = -1, shape[axis] - 1
    return matrix


def over_depth(boxes: Boxes, depth: int) -> Boxes:
    """Return boxes that reach over the whole depth of an image."""
    corners = boxes.corners.clone()
    corners[:, 2], corners[:, 5] = 0, depth
    return boxes._replace(corners=corners)


def clipped(boxes: Boxes, shape: Sequence[int], visible: float = 0.0) -> Boxes:
    """Return what of the boxes lies in an image.

    Args:
        boxes: Whole ones, which may reach beyond the image.
        shape: Of the image.
        visible: Boxes of which less than this share lies in the image are left out, as are those quite outside.
    """
    inside = _within(boxes.corners, shape)
    there = volumes(inside)
    return boxes._replace(corners=inside).chosen((there > 0) & (there >= visible * volumes(boxes.corners)))


def meeting(boxes: Boxes, shape: Sequence[int]) -> Boxes:
    """Return the boxes that reach into an image, as whole as they are."""
    return boxes.chosen(volumes(_within(boxes.corners, shape)) > 0)


def middle_of_some(
    boxes: Boxes, balance: str, wanted: int | None, random: np.random.Generator
) -> Integer[np.ndarray, "3"]:
    """Return the voxel in the middle of one of the boxes.

    Args:
        boxes: One at least.
        balance: `voxel` draws larger boxes more often; else each class of the image comes equally often.
        wanted: The class; `None` draws it.
        random: Draws.
    """
    weights = volumes(boxes.corners).numpy().astype(np.float64)
    if balance != "voxel":
        classes = boxes.classes.numpy()
        wanted = int(random.choice(np.unique(classes))) if wanted is None else wanted
        weights = (classes == wanted).astype(np.float64)
    corners = boxes.corners[int(random.choice(len(weights), p=weights / weights.sum()))].numpy()
    return np.floor((corners[:3] + corners[3:]) / 2).astype(np.int64)


def check_carrying(augment: Sequence[Transform]) -> None:
    """Refuse transforms, none of them composed, through which boxes cannot be carried.

    A transform of ours says with `carries_boxes` that what it leaves in a subject's history has a method `carry`.

    Raises:
        ValueError: Names the transform and what to do.
    """
    for transform in augment:
        if not isinstance(transform, KNOWN) and not getattr(transform, "carries_boxes", False):
            raise ValueError(
                f"augment: {type(transform).__name__} moves voxels in a way that boxes cannot follow; take it out, or "
                "use RandomFlip, RandomAffine, RandomQuarterTurns or BatchAugmentation"
            )


def follow(boxes: Boxes, subject: tio.Subject, shape: Shape, affine: Float[np.ndarray, "4 4"]) -> tuple[Boxes, Shape]:
    """Take boxes through all that was done to a subject, by its history; return them with the shape that it has now.

    Args:
        boxes: In voxels of the image as it was.
        subject: With its history.
        shape: Of the image as it was.
        affine: Likewise.
    """
    subclasses = {each.__name__: each for each in _all_subclasses(Transform)}
    for name, arguments in subject.applied_transforms:
        kind = subclasses[name]
        if name == UNMOVED or issubclass(kind, IntensityTransform):
            continue
        boxes, shape, affine = _through(kind(**arguments), boxes, shape, affine)
    return boxes, shape


def _through(
    transform: Transform, boxes: Boxes, shape: Shape, affine: Float[np.ndarray, "4 4"]
) -> tuple[Boxes, Shape, Float[np.ndarray, "4 4"]]:
    if (carry := getattr(transform, "carry", None)) is not None:
        return carry(boxes, shape, affine)
    if isinstance(transform, Crop | Pad):
        inward = 1 if isinstance(transform, Crop) else -1
        low, high = (inward * np.array(transform.bounds_parameters)[part::2] for part in (0, 1))
        i, j, k = (int(side) for side in np.array(shape) - low - high)
        corner = np.eye(4)
        corner[:3, 3] = low
        return shifted(boxes, -low), (i, j, k), affine @ corner
    image = tio.LabelMap(tensor=torch.zeros((1, 1, 1, 1), dtype=torch.uint8).expand(1, *shape), affine=affine)
    if isinstance(transform, Flip):
        axes = [image.axis_name_to_index(each) + 3 if isinstance(each, str) else each for each in transform.axes]
        return flipped(boxes, [each for each in axes if isinstance(each, int)], shape), shape, affine
    assert isinstance(transform, Affine)  # `check_carrying` lets nothing else in
    return carried(boxes, affine_map(transform.get_affine_transform(image).TransformPoint, affine)), shape, affine


def affine_map(
    back: Callable[[tuple[float, float, float]], Sequence[float]], affine: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "4 4"]:
    """Return what takes voxels to where they are seen after a resampling.

    Args:
        back: Takes a place of the new image to that of the old one at which it is read, in ITK's axes (LPS, mm).
        affine: Of the grid (RAS), which stays.
    """
    points = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    origin, *ends = (np.array(back(point)) for point in points)
    in_lps = np.eye(4)
    in_lps[:3, :3], in_lps[:3, 3] = np.stack([end - origin for end in ends], axis=1), origin
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    return np.linalg.inv(np.linalg.inv(affine) @ turn @ in_lps @ turn @ affine)


def _within(corners: Float[Tensor, "boxes 6"], shape: Sequence[int]) -> Float[Tensor, "boxes 6"]:
    return corners.clamp(min=0).minimum(torch.tensor([*shape, *shape], dtype=corners.dtype, device=corners.device))


def _all_subclasses(kind: type) -> list[type]:
    return [each for child in kind.__subclasses__() for each in (child, *_all_subclasses(child))]
