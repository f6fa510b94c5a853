"""Turns by right angles: exact, so nothing is interpolated."""

import torch
from torchio import Subject
from torchio.transforms import SpatialTransform
from torchio.transforms.augmentation import RandomTransform

AXES = ("i", "j", "k")


class RandomQuarterTurns(RandomTransform, SpatialTransform):
    """Turn a patch by 90, 180 or 270 degrees in a plane, each equally often.

    A turn is no mirroring, so classes keep their sides; voxels that are no squares in the plane change their shape. A
    patch whose sides differ in the plane is turned by 180 degrees only.

    Args:
        plane: Two of the axes `i`, `j`, `k`.
        p: How often a patch is turned.
    """

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
        for image in self.get_images(subject):
            image.set_data(torch.rot90(image.data, turns, (first, second)).contiguous())
        return subject
