"""Random movements of a patch: one map for the image and its label, and one interpolation."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from lightning_atlas.data.cases import UNKNOWN

Triple = tuple[float, float, float]
Size = tuple[int, int, int]
ANGLES = 21
"""Angles of each axis at which the reach of a rotation is looked up; at 30 degrees it is then known to 0.3 %."""


@dataclass(frozen=True)
class Rotation:
    """Turns about the middle of the patch, about the axes i, j, k in this order.

    Args:
        degrees: The largest angle about each axis, either way.
        in_plane_degrees: The largest angle where `in_plane_above` leaves only turns in the plane.
        probability: Share of the patches that turn.
    """

    degrees: Triple = (30.0, 30.0, 30.0)
    in_plane_degrees: float = 180.0
    probability: float = 0.2

    def __post_init__(self) -> None:
        if min(*self.degrees, self.in_plane_degrees) < 0 or not 0 <= self.probability <= 1:
            raise ValueError(f"rotation: angles are at least 0 degrees, probability is from 0 to 1, found {self}")


@dataclass(frozen=True)
class Scaling:
    """Zooms about the middle of the patch, equally along all axes.

    Args:
        factor: Least and largest length in the scan that becomes a length of one; above 1 things become smaller.
        probability: Share of the patches that are scaled.
    """

    factor: tuple[float, float] = (0.7, 1.4)
    probability: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.factor[0] <= self.factor[1] or not 0 <= self.probability <= 1:
            raise ValueError(f"scaling: factor is [least, most] above 0, probability is from 0 to 1, found {self}")


@dataclass(frozen=True)
class Mirroring:
    """Reverses axes, each on its own.

    Args:
        axes: Which.
        probability: Share of the patches that are reversed along an axis.
    """

    axes: tuple[Literal["i", "j", "k"], ...] = ("i", "j", "k")
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"mirroring: probability is from 0 to 1, found {self.probability}")


@dataclass(frozen=True)
class Move:
    """One movement as it was drawn.

    Args:
        degrees: Angles about i, j, k, taken in this order.
        factor: Length in the scan along i, j, k that becomes a length of one.
        mirrored: Whether the patch is reversed along i, j, k, after all else.
    """

    degrees: Triple = (0.0, 0.0, 0.0)
    factor: Triple = (1.0, 1.0, 1.0)
    mirrored: tuple[bool, bool, bool] = (False, False, False)

    def matrix(self, spacing_mm: Triple) -> Float[np.ndarray, "3 3"]:
        """Take a voxel's offset from the middle of the patch to the offset, in voxels, at which the scan is read."""
        spacing = np.array(spacing_mm)
        in_voxels = rotation(self.degrees) * (spacing[None] / spacing[:, None])  # exactly 1 on the diagonal at rest
        return in_voxels * np.array(self.factor) * np.where(self.mirrored, -1.0, 1.0)


@dataclass(frozen=True)
class Spatial:
    """How patches are turned, scaled and mirrored, in degrees and millimetres.

    Args:
        rotation: Turns.
        scaling: Zooms.
        mirroring: Reversed axes.
        in_plane_above: Where the largest side of a voxel is more than this many times the least, the planes across it
            stay whole: turns go about that axis only, and nothing is scaled along it.
        keep_planes: The planes across k stay whole in any case, so that annotated planes lose no voxel.
    """

    rotation: Rotation = field(default_factory=Rotation)
    scaling: Scaling = field(default_factory=Scaling)
    mirroring: Mirroring = field(default_factory=Mirroring)
    in_plane_above: float = 3.0
    keep_planes: bool = False

    def draw(self, random: np.random.Generator, spacing_mm: Triple) -> Move:
        """Draw a movement; how many numbers it takes does not depend on what is drawn."""
        turned, scaled = random.random(2) < (self.rotation.probability, self.scaling.probability)
        angles = random.uniform(-1, 1, size=3) * self.limits(spacing_mm) * turned
        factor = random.uniform(*self.scaling.factor) if scaled else 1.0
        reversed_axes = random.random(3) < self.mirroring.probability
        kept = self.kept_axes(spacing_mm)
        i, j, k = (1.0 if axis in kept else factor for axis in range(3))
        mirrored = [bool(yes) and axis in self.mirroring.axes for axis, yes in zip("ijk", reversed_axes, strict=True)]
        return Move(
            degrees=(float(angles[0]), float(angles[1]), float(angles[2])),
            factor=(i, j, k),
            mirrored=(mirrored[0], mirrored[1], mirrored[2]),
        )

    def kept_axes(self, spacing_mm: Triple) -> tuple[int, ...]:
        """Return the axes across which planes stay whole."""
        coarse = self._coarse_axis(spacing_mm)
        return tuple(axis for axis in range(3) if axis == coarse or (axis == 2 and self.keep_planes))

    def limits(self, spacing_mm: Triple) -> Float[np.ndarray, "3"]:
        """Return the largest angle about each axis in degrees; 0 where a turn would break planes that stay whole."""
        kept, coarse = self.kept_axes(spacing_mm), self._coarse_axis(spacing_mm)
        limits = np.array(self.rotation.degrees)
        if coarse is not None:
            limits[coarse] = self.rotation.in_plane_degrees
        return np.where([set(kept) <= {axis} for axis in range(3)], limits, 0.0)

    def source_size(self, size: Size, spacing_mm: Triple) -> Size:
        """Return the least size of a patch that holds all that any movement reads for a patch of `size`."""
        half_mm = (np.array(size) - 1) / 2 * spacing_mm
        if self.scaling.probability:
            scaled = [axis not in self.kept_axes(spacing_mm) for axis in range(3)]
            half_mm = half_mm * np.where(scaled, max(1.0, self.scaling.factor[1]), 1.0)
        reach_mm = half_mm
        if self.rotation.probability:
            reach_mm = _turned_reach(half_mm, self.limits(spacing_mm))
        return enlarged(size, reach_mm / spacing_mm)

    def _coarse_axis(self, spacing_mm: Triple) -> int | None:
        coarse = max(spacing_mm) > self.in_plane_above * min(spacing_mm)
        return int(np.argmax(spacing_mm)) if coarse else None


def rotation(degrees: Triple) -> Float[np.ndarray, "3 3"]:
    """Return the matrix of a turn about i, then j, then k."""
    cosines, sines = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turns = []
    for axis, (c, s) in enumerate(zip(cosines, sines, strict=True)):
        turn, (b, d) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
        turn[[b, b, d, d], [b, d, b, d]] = c, -s, s, c
        turns.append(turn)
    return turns[2] @ turns[1] @ turns[0]


def enlarged(size: Size, reach: Float[np.ndarray, "3"]) -> Size:
    """Return a size with the same middle that holds offsets up to `reach` voxels from it."""
    more = np.maximum(np.ceil(reach - (np.array(size) - 1) / 2 - 1e-6), 0).astype(int)
    i, j, k = (side + 2 * int(each) for side, each in zip(size, more, strict=True))
    return i, j, k


def _turned_reach(half_mm: Float[np.ndarray, "3"], limits: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    # How far a box of these half sides extends when it turns: looked up at many angles, plus the most that it can gain
    # between two of them. At a maximum the first derivative is 0, and the second is at most the diagonal of the box.
    moving = limits.sum() - limits > 0  # a turn about an axis leaves it where it is
    diagonal = np.linalg.norm(half_mm[moving])
    between = np.radians(limits.sum() / (ANGLES - 1))
    most = (_turns((limits[0], limits[1], limits[2])) @ half_mm).max(axis=0)
    return np.where(moving, np.minimum(most + diagonal * between**2 / 2, diagonal), half_mm)


@lru_cache(maxsize=8)
def _turns(limits: Triple) -> Float[np.ndarray, "turns 3 3"]:
    steps = [np.linspace(-limit, limit, ANGLES) if limit else [0.0] for limit in limits]
    return np.abs([rotation((i, j, k)) for i in steps[0] for j in steps[1] for k in steps[2]])


def voxel_map(matrix: Float[np.ndarray, "3 3"], source: Size, size: Size) -> Float[np.ndarray, "4 4"]:
    """Take voxels of the moved patch to the voxels of the patch that it is read from, middle to middle."""
    middle = (np.array(size) - 1) / 2
    corner = (np.array(source) - size) // 2
    whole = np.eye(4)
    whole[:3, :3] = matrix
    whole[:3, 3] = corner + middle - matrix @ middle
    return whole


def moved(
    image: Float[Tensor, "channels a b c"],
    label: Integer[Tensor, "a b c"],
    matrix: Float[np.ndarray, "3 3"],
    size: Size,
) -> tuple[Float[Tensor, "channels i j k"], Integer[Tensor, "i j k"]]:
    """Read the moved patch: the image linearly, in float32, the label at the nearest voxel.

    What lies beyond has the least value of each channel and row 0. At rest and for reversed axes voxels are copied; a
    change of scale is done axis by axis, which gives the same values as the general map.
    """
    source = (label.shape[0], label.shape[1], label.shape[2])
    whole = voxel_map(matrix, source, size)
    diagonal = np.diagonal(matrix)
    if np.array_equal(np.abs(matrix), np.eye(3)):
        inner = tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(source, size, strict=True))
        axes = [axis for axis in range(3) if diagonal[axis] < 0]
        return image[:, *inner].float().flip([1 + axis for axis in axes]), label[inner].flip(axes)
    least = image.float().amin((1, 2, 3), keepdim=True)
    above = image.float() - least  # what lies beyond is then 0
    if np.array_equal(matrix, np.diag(diagonal)):
        places = [whole[axis, axis] * np.arange(size[axis]) + whole[axis, 3] for axis in range(3)]
        weights = [linear_weights(place, side) for place, side in zip(places, source, strict=True)]
        return along_axes(above, weights).add_(least), _picked(label, places)
    grid = _grid(whole, source, size, image.device)
    linear = F.grid_sample(above[None], grid, mode="bilinear", align_corners=False)[0].add_(least)
    nearest = F.grid_sample(label[None, None].float(), grid, mode="nearest", align_corners=False)[0, 0]
    return linear, nearest.to(label.dtype)


def along_axes(
    image: Float[Tensor, "channels a b c"], weights: list[Float[np.ndarray, "_ _"]]
) -> Float[Tensor, "channels i j k"]:
    """Replace the voxels along each axis by weighted sums of them: one matrix (new x old) for each axis."""
    along_i, along_j, along_k = (torch.from_numpy(each.astype(np.float32)).to(image.device) for each in weights)
    image = image @ along_k.T
    image = along_j @ image
    return (along_i @ image.flatten(2)).unflatten(2, image.shape[2:])


def linear_weights(places: Float[np.ndarray, " new"], side: int) -> Float[np.ndarray, "new old"]:
    """Return the weights with which voxels along an axis are read at these places; beyond the ends they are 0."""
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side)))


def _picked(label: Tensor, places: list[np.ndarray]) -> Tensor:
    for axis, (place, side) in enumerate(zip(places, label.shape, strict=True)):
        nearest = np.rint(place).astype(np.int64)
        beyond = np.flatnonzero((nearest < 0) | (nearest >= side))
        label = label.index_select(axis, torch.from_numpy(nearest.clip(0, side - 1)).to(label.device))
        label = label.index_fill(axis, torch.from_numpy(beyond).to(label.device), UNKNOWN)
    return label


def _grid(whole: np.ndarray, source: Size, size: Size, device: torch.device) -> Float[Tensor, "1 i j k 3"]:
    # grid_sample's coordinates: the outer faces of the first and last voxel are -1 and 1, and the last axis comes first
    sides = np.array(source)
    steps = 2 * whole[:3, :3] / sides[:, None]
    begin = (2 * whole[:3, 3] + 1) / sides - 1
    terms = [np.arange(size[axis])[:, None] * steps[None, ::-1, axis] for axis in range(3)]
    terms[0] = terms[0] + begin[::-1]
    along_i, along_j, along_k = (torch.from_numpy(term.astype(np.float32)).to(device) for term in terms)
    return (along_i[:, None, None] + along_j[:, None] + along_k)[None]
