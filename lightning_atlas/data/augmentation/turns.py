"""Turns by right angles: exact, so nothing is interpolated."""

from typing import Any

import numpy as np
import torch
from torchio import Subject
from torchio.transforms import SpatialTransform
from torchio.transforms.augmentation import RandomTransform

from lightning_atlas.data.boxes import Shape, carried
from lightning_atlas.types import Boxes

AXES = ("i", "j", "k")


class QuarterTurns(SpatialTransform):
    """Turn by right angles.

    Args:
        turns: How many, from the first axis of the plane to the second.
        plane: Two of the axes `i`, `j`, `k`.
    """

    carries_boxes = True

    def __init__(self, turns: int, plane: tuple[str, str] = ("i", "j"), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.turns, self.plane = turns, plane
        self.args_names = ["turns", "plane"]

    def apply_transform(self, subject: Subject) -> Subject:
        """Turn all images of a subject alike."""
        first, second = (1 + AXES.index(axis) for axis in self.plane)
        for image in self.get_images(subject):
            image.set_data(torch.rot90(image.data, self.turns, (first, second)).contiguous())
        return subject

    def carry(self, boxes: Boxes, shape: Shape, affine: np.ndarray) -> tuple[Boxes, Shape, np.ndarray]:
        """Return boxes as they lie in the turned image, its shape, and the affine, which a turn leaves."""
        first, second = (AXES.index(axis) for axis in self.plane)
        for _ in range(self.turns % 4):
            matrix, sides = np.eye(4), list(shape)
            matrix[[first, second]] = matrix[[second, first]]  # a place on the second axis comes to lie on the first
            matrix[first] *= -1
            matrix[first, 3] = shape[second] - 1
            sides[first], sides[second] = sides[second], sides[first]
            boxes, shape = carried(boxes, matrix), (sides[0], sides[1], sides[2])
        return boxes, shape, affine


class RandomQuarterTurns(RandomTransform, SpatialTransform):
    """Turn a patch by 90, 180 or 270 degrees in a plane, each equally often.

    A turn is no mirroring, so classes keep their sides; voxels that are no squares in the plane change their shape. A
    patch whose sides differ in the plane is turned by 180 degrees only.

    Args:
        plane: Two of the axes `i`, `j`, `k`.
        p: How often a patch is turned.
    """

    carries_boxes = True

    def __init__(self, plane: tuple[str, str] = ("i", "j"), p: float = 0.1) -> None:
        super().__init__(p=p)
        if len(set(plane)) != 2 or not set(plane) <= set(AXES):
            raise ValueError(f"RandomQuarterTurns turns in a plane of two of the axes i, j, k, and found {list(plane)}")
        self.plane = plane

    def apply_transform(self, subject: Subject) -> Subject:
        """Turn all images of a subject alike."""
        first, second = (1 + AXES.index(axis) for axis in self.plane)
        shape = (0, *subject.spatial_shape)
        turns = int(torch.randint(1, 4, (1,))) if shape[first] == shape[second] else 2
        return QuarterTurns(turns, self.plane, **self._get_base_args())(subject)
