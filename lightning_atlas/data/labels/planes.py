"""How annotated planes reach another grid: none invented, none lost, none smeared over its neighbours."""

from itertools import pairwise, product

import numpy as np
from jaxtyping import Bool, Float, Integer

from lightning_atlas.data.labels.grids import TOLERANCE_VOXELS, GridMap

FARTHEST_PLANES = 1.0
"""A target plane farther than this from a plane of the file holds nothing of its image."""


class AnnotatedPlanes:
    """Annotated planes of a source grid, and which planes of a target take their labels from them.

    A target plane is valid if both source planes around it are annotated, or if it is the nearest target plane of an
    annotated one; its label is the nearest annotated plane's. Of two equally near target planes the lower (in RAS) is
    taken and of two annotated ones the upper, so that none of two planes takes what is the other's.

    Args:
        planes: Annotated planes of the source in rising order.
        axis: Axis of the source across them.
        upwards: Whether that axis runs towards the positive end of its axis in RAS.
        grid: From the target to the source.
    """

    def __init__(self, planes: Integer[np.ndarray, " planes"], axis: int, upwards: bool, grid: GridMap) -> None:
        self.planes, self.axis = planes, axis
        self._upwards, self._size = upwards, grid.source[axis]
        self._pitch = abs(float(grid.matrix[axis, axis]))
        corners = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in grid.target))])
        ends = corners @ grid.matrix[axis]
        self._reach = float(ends.min()) - self._pitch / 2, float(ends.max()) + self._pitch / 2
        self._used: set[int] = set()
        self._line = None if grid.lines is None else self._along_line(grid.lines[axis])

    def taken(self, places: list[np.ndarray], block: slice) -> tuple[list[np.ndarray], Bool[np.ndarray, "#i #j #k"]]:
        """Return places that are moved onto the annotated planes, and which of them are valid."""
        if self._line is None:
            nearest = self._nearest(places[self.axis])
            near = np.abs(places[self.axis] - nearest) <= min(self._pitch / 2, FARTHEST_PLANES) + TOLERANCE_VOXELS
            valid = near | self._between(places[self.axis])
        else:
            part = block if self.axis == 0 else slice(None)
            nearest, valid = (each[part].reshape(places[self.axis].shape) for each in self._line)
        self._used |= set(np.unique(nearest[valid]).tolist())
        moved = list(places)
        moved[self.axis] = nearest.astype(float)
        return moved, valid

    def lost(self) -> list[int]:
        """Return annotated planes within the target of which nothing arrived; neighbours stand for each other."""
        cuts = [number for number, (one, other) in enumerate(pairwise(self.planes.tolist()), 1) if other - one > 1]
        runs = [run.tolist() for run in np.split(self.planes, cuts)]
        return [
            plane
            for run in runs
            if not self._used & set(run)
            for plane in run
            if self._reach[0] <= plane <= self._reach[1]
        ]

    def _along_line(
        self, line: Float[np.ndarray, " places"]
    ) -> tuple[Integer[np.ndarray, " places"], Bool[np.ndarray, " places"]]:
        valid = self._between(line)
        rising = np.arange(len(line))[:: 1 if self._upwards else -1]
        inside = (line >= -0.5 - TOLERANCE_VOXELS) & (line <= self._size - 0.5 + TOLERANCE_VOXELS)
        for plane in self.planes:
            gaps = np.where(inside, np.abs(line - plane).round(3), np.inf)[rising]
            if gaps.min() <= FARTHEST_PLANES:
                valid[rising[gaps.argmin()]] = True
        return self._nearest(line), valid

    def _nearest(self, places: Float[np.ndarray, "..."]) -> Integer[np.ndarray, "..."]:
        after = np.searchsorted(self.planes, places)
        below, above = self.planes[np.maximum(after - 1, 0)], self.planes[np.minimum(after, len(self.planes) - 1)]
        gain = np.abs(above - places) - np.abs(places - below)
        return np.where(gain > TOLERANCE_VOXELS if self._upwards else gain >= -TOLERANCE_VOXELS, below, above)

    def _between(self, places: Float[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
        annotated = np.zeros(self._size + 2, dtype=bool)  # with a plane at either end that there is not
        annotated[self.planes + 1] = True
        low, high = np.floor(places + TOLERANCE_VOXELS), np.ceil(places - TOLERANCE_VOXELS)
        around = (np.clip(each, -1, self._size).astype(np.intp) + 1 for each in (low, high))
        return annotated[next(around)] & annotated[next(around)]
