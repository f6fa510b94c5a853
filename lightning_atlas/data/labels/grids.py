"""How one voxel grid lies on another, and which voxels lie around each place."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Integer

Axis = Literal["i", "j", "k"]
Shape = tuple[int, int, int]

TOLERANCE_VOXELS = 1e-3
"""Grids that differ by less are one grid: headers keep a few digits only."""
TIE = 1e-6
"""Shares that differ by less are equal, so that rounding decides nothing."""
BLOCK_VOXELS = 2**19


def along(affine: Float[np.ndarray, "4 4"], axis: Axis) -> tuple[int, int]:
    """Return the voxel axis that is nearest to an axis of RAS, and 1 if it runs the same way or -1."""
    orientation = nib.orientations.io_orientation(affine)
    voxel_axis = int(np.flatnonzero(orientation[:, 0] == "ijk".index(axis))[0])
    return voxel_axis, int(orientation[voxel_axis, 1])


def anatomical(affine: Float[np.ndarray, "4 4"], voxel_axis: int) -> tuple[str, int]:
    """Return the axis of RAS that is nearest to a voxel axis, and 1 if that runs the same way or -1."""
    letter, direction = nib.orientations.io_orientation(affine)[voxel_axis]
    return "ijk"[int(letter)], int(direction)


def described(shape: Shape, affine: Float[np.ndarray, "4 4"]) -> str:
    """Return a grid in words, for messages."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    spacing, origin = ([round(float(each), 3) for each in values] for values in (lengths, affine[:3, 3]))
    codes = "".join(nib.orientations.aff2axcodes(affine))
    return f"shape {tuple(shape)}, {codes}, spacing {spacing} mm, origin {origin}"


def turned(
    volume: Integer[np.ndarray, "i j k"], affine: Float[np.ndarray, "4 4"], like: Float[np.ndarray, "4 4"]
) -> tuple[Integer[np.ndarray, "i2 j2 k2"], Float[np.ndarray, "4 4"]]:
    """Return a view of a volume whose axes run as nearly as they can along the same axes of another grid."""
    relative = np.eye(4)
    ours, theirs = (each[:3, :3] / np.linalg.norm(each[:3, :3], axis=0) for each in (affine, like))
    relative[:3, :3] = np.linalg.inv(theirs) @ ours
    orientation = nib.orientations.io_orientation(relative)
    back = nib.orientations.inv_ornt_aff(orientation, volume.shape)
    return nib.orientations.apply_orientation(volume, orientation), affine @ back


@dataclass(frozen=True)
class GridMap:
    """Where the voxels of a target grid lie in a source grid whose axes run along the same axes.

    Args:
        matrix: From voxels of the target to voxels of the source.
        source: Shape of the source.
        target: Shape of the target.
        lines: Places along each axis of the source; `None` where the grids are oblique to each other.
    """

    matrix: Float[np.ndarray, "4 4"]
    source: Shape
    target: Shape
    lines: tuple[np.ndarray, np.ndarray, np.ndarray] | None

    @classmethod
    def between(
        cls,
        source_affine: Float[np.ndarray, "4 4"],
        source: Shape,
        target_affine: Float[np.ndarray, "4 4"],
        target: Shape,
    ) -> "GridMap":
        """Compare two grids; places are rounded to a ten-thousandth of a voxel."""
        matrix = np.linalg.inv(source_affine) @ target_affine
        ends = np.array(target) - 1
        slant = matrix[:3, :3] - np.diag(np.diag(matrix))[:3, :3]
        if (np.abs(slant) @ ends).max() > TOLERANCE_VOXELS:
            return cls(matrix, source, target, None)
        starts = matrix[:3, 3] + slant @ ends / 2
        steps = np.diag(matrix)[:3]
        lines = [
            _whole(start + step * np.arange(size)) for start, step, size in zip(starts, steps, target, strict=True)
        ]
        return cls(matrix, source, target, (lines[0], lines[1], lines[2]))

    @property
    def exact(self) -> bool:
        """Whether each voxel of the target is one of the source, or lies outside it."""
        return self.lines is not None and all(
            np.array_equal(line, np.rint(line)) and (np.diff(line) == 1).all() for line in self.lines
        )

    def picked(self, volume: Integer[np.ndarray, "i j k"]) -> Integer[np.ndarray, "i2 j2 k2"]:
        """Return the volume on the target grid of an exact map; outside the source it is 0."""
        result = np.zeros(self.target, dtype=volume.dtype)
        inner, outer = [], []
        for line, size in zip(self.lines or (), volume.shape, strict=True):
            start = round(float(line[0]))
            first, last = max(0, -start), max(0, -start, min(len(line), size - start))
            outer.append(slice(first, last))
            inner.append(slice(first + start, last + start))
        result[tuple(outer)] = volume[tuple(inner)]
        return result

    def blocks(self) -> Iterator[slice]:
        """Yield ranges of target planes along the first axis, of about `BLOCK_VOXELS` each."""
        planes = max(1, BLOCK_VOXELS // max(1, self.target[1] * self.target[2]))
        for start in range(0, self.target[0], planes):
            yield slice(start, min(start + planes, self.target[0]))

    def places(self, block: slice) -> list[np.ndarray]:
        """Return where a block's voxels lie along each axis of the source, in arrays that broadcast to the block."""
        if self.lines is not None:
            i, j, k = self.lines
            return [i[block][:, None, None], j[None, :, None], k[None, None, :]]
        i, j, k = np.ogrid[block, : self.target[1], : self.target[2]]
        return [(row[0] * i + row[1] * j + row[2] * k + row[3]).round(4) for row in self.matrix[:3]]


def _whole(line: np.ndarray) -> np.ndarray:
    whole = np.rint(line)
    return whole if np.abs(line - whole).max() < TOLERANCE_VOXELS else line.round(4)


class Neighbours:
    """The voxels of a volume around each place of a block: up to eight, with weights that fall off linearly.

    Places up to half a voxel beyond the outermost centres belong to the volume; there its last voxel goes on.

    Args:
        volume: Values, contiguous in memory.
        places: Along each axis, in arrays that broadcast to the block.
    """

    def __init__(self, volume: Integer[np.ndarray, "i j k"], places: list[np.ndarray]) -> None:
        self._values = volume.reshape(-1)
        self.inside = np.ones((1, 1, 1), dtype=bool)
        start, self._parts, self._steps = np.zeros((1, 1, 1), dtype=np.intp), [], []
        strides = (volume.shape[1] * volume.shape[2], volume.shape[2], 1)
        for place, size, stride in zip(places, volume.shape, strides, strict=True):
            reach = 0.5 + TOLERANCE_VOXELS
            self.inside = self.inside & (place >= -reach) & (place <= size - 1 + reach)
            clipped = np.clip(place, 0, size - 1)
            low = np.floor(clipped).astype(np.intp)
            start = start + low * stride
            self._parts.append(clipped - low)
            self._steps.append(np.where(clipped > low, stride, 0))
        self._start = start
        self._moves = list(product(*[(0, 1) if part.any() else (0,) for part in self._parts]))

    def mixed(
        self, lut: Integer[np.ndarray, " values"]
    ) -> tuple[Integer[np.ndarray, "i j k"], Bool[np.ndarray, "i j k"]]:
        """Return the value of one neighbour, and where the neighbours' values differ, both as seen through a table."""
        first = lut[self._values[self._start]]
        differ = np.zeros(first.shape, dtype=bool)
        for move in self._moves[1:]:
            differ |= lut[self._values[self._moved(self._start, self._steps, move)]] != first
        return first, differ

    def at(
        self, where: Bool[np.ndarray, "i j k"]
    ) -> tuple[Integer[np.ndarray, "neighbours places"], Float[np.ndarray, "neighbours places"]]:
        """Return all neighbours' values at some places of the block, and their weights."""
        start, steps, parts = (
            [np.broadcast_to(each, where.shape)[where] for each in arrays]
            for arrays in ([self._start], self._steps, self._parts)
        )
        values = [self._values[self._moved(start[0], steps, move)] for move in self._moves]
        weights = [
            np.prod([part if up else 1 - part for up, part in zip(move, parts, strict=True)], axis=0)
            for move in self._moves
        ]
        return np.stack(values), np.stack(weights)

    @staticmethod
    def _moved(start: np.ndarray, steps: list[np.ndarray], move: tuple[int, ...]) -> np.ndarray:
        for up, step in zip(move, steps, strict=True):
            start = start + step if up else start
        return start


def largest_share(
    kinds: Integer[np.ndarray, "neighbours places"], weights: Float[np.ndarray, "neighbours places"]
) -> Integer[np.ndarray, " places"]:
    """Return the kind with the largest sum of weights at each place; of equal ones the lowest."""
    winner, best = kinds[0].copy(), np.full(kinds.shape[1], -1.0)
    for kind in kinds:
        share = np.einsum("np,np->p", weights, kinds == kind)
        better = (share > best + TIE) | ((share > best - TIE) & (kind < winner))
        winner[better], best[better] = kind[better], share[better]
    return winner


def resampled(volume: Integer[np.ndarray, "i j k"], grid: GridMap) -> Integer[np.ndarray, "i2 j2 k2"]:
    """Return values that exclude each other on the target grid: the one with the largest share, 0 outside."""
    named, places = np.unique(volume, return_inverse=True)
    numbers = places.reshape(volume.shape).astype(np.intp)
    result = np.zeros(grid.target, dtype=volume.dtype)
    for block in grid.blocks():
        around = Neighbours(numbers, grid.places(block))
        ids, differ = around.mixed(np.arange(len(named)))
        if differ.any():
            ids[differ] = largest_share(*around.at(differ))
        result[block] = np.where(around.inside, named[ids], 0)
    return result
