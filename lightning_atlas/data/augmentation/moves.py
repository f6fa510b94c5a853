"""What moves a picture: its pixels, the masks and boxes on it, and its affine, all alike."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from lightning_atlas.data.boxes import carried, clipped, flipped, reversal
from lightning_atlas.types import Boxes

Sides = tuple[int, int]
Shape = tuple[int, int, int]
LEAST_VISIBLE = 0.25
"""Share of a box's area that must be left in the picture; of less there is nothing to learn."""


@runtime_checkable
class Move(Protocol):
    """One movement of a picture; `pixels` and `masks` have the axes channels i j k."""

    def pixels(self, image: Tensor) -> Tensor:
        """Move intensities."""
        ...

    def masks(self, label: Tensor) -> Tensor:
        """Move labels; no value that was not there comes up."""
        ...

    def boxes(self, boxes: Boxes, shape: Sequence[int]) -> Boxes:
        """Move boxes of a picture whose sides were `shape`, and drop those that are left outside."""
        ...

    def map(self, shape: Sequence[int]) -> np.ndarray:
        """Return what takes voxels to those of the picture as it was, whose sides were `shape`."""
        ...

    def sides(self, shape: Sequence[int]) -> Shape:
        """Return the sides of the moved picture."""
        ...


class Frame(NamedTuple):
    """Cut a part out of a picture, and resize it; what lies beyond the picture is black.

    Args:
        low: First column and row; below 0 where the part begins outside.
        extent: Columns and rows of the part.
        size: Columns and rows that it gets.
    """

    low: Sides
    extent: Sides
    size: Sides

    def pixels(self, image: Tensor) -> Tensor:
        """Resize bilinearly, with antialiasing; bytes stay bytes."""
        part = self._cut(image)
        if self.extent == self.size:
            return part
        planes = part.permute(3, 0, 2, 1)  # rows before columns, as Pillow has them: the order that torch does quickly
        planes = planes if planes.dtype in (torch.uint8, torch.float32) else planes.float()
        planes = planes.contiguous(memory_format=torch.channels_last)
        i, j = self.size
        resized = interpolate(planes, (j, i), mode="bilinear", antialias=True)
        return resized.permute(1, 3, 2, 0)

    def masks(self, label: Tensor) -> Tensor:
        """Take the nearest value."""
        part = self._cut(label)
        if self.extent == self.size:
            return part
        columns, rows = (_nearest(extent, size) for extent, size in zip(self.extent, self.size, strict=True))
        return part[:, columns][:, :, rows]

    def boxes(self, boxes: Boxes, shape: Sequence[int]) -> Boxes:
        """Keep boxes of which `LEAST_VISIBLE` is left."""
        whole = carried(boxes, np.linalg.inv(self.map(shape)))
        return clipped(whole, self.sides(shape), LEAST_VISIBLE)

    def sides(self, shape: Sequence[int]) -> Shape:
        """Return those of the frame."""
        return (*self.size, shape[2])

    def map(self, shape: Sequence[int]) -> np.ndarray:
        """Scale and shift: the middles of voxels lie half a voxel behind their low corners."""
        i, j = (extent / size for extent, size in zip(self.extent, self.size, strict=True))
        shift = i / 2 - 0.5 + self.low[0], j / 2 - 0.5 + self.low[1]
        return np.array([[i, 0, 0, shift[0]], [0, j, 0, shift[1]], [0, 0, 1, 0], [0, 0, 0, 1]])

    def _cut(self, data: Tensor) -> Tensor:
        (i, j), (wide, high) = self.low, self.extent
        before = max(-i, 0), max(-j, 0)
        beyond = max(i + wide - data.shape[1], 0), max(j + high - data.shape[2], 0)
        if any((*before, *beyond)):
            data = pad(data, (0, 0, before[1], beyond[1], before[0], beyond[0]))
            i, j = i + before[0], j + before[1]
        return data[:, i : i + wide, j : j + high]


class Mirror(NamedTuple):
    """Reverse axes of a picture.

    Args:
        axes: Numbers: 0 for i, 1 for j.
    """

    axes: tuple[int, ...]

    def pixels(self, image: Tensor) -> Tensor:
        """Reverse."""
        return image.flip([1 + axis for axis in self.axes])

    def masks(self, label: Tensor) -> Tensor:
        """Reverse."""
        return self.pixels(label)

    def boxes(self, boxes: Boxes, shape: Sequence[int]) -> Boxes:
        """Reverse: the high corner becomes the low one."""
        return flipped(boxes, self.axes, shape)

    def sides(self, shape: Sequence[int]) -> Shape:
        """Return them as they were."""
        i, j, k = shape
        return i, j, k

    def map(self, shape: Sequence[int]) -> np.ndarray:
        """Reverse: the last voxel becomes the first."""
        return reversal(self.axes, shape)


def _nearest(extent: int, size: int) -> Tensor:
    return ((torch.arange(size) + 0.5) * (extent / size)).long().clamp(max=extent - 1)
