"""Numbers for the combinations that occur in a volume: one integer a voxel instead of a mask for each class."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Integer, Shaped

MOST = 2**15 - 1
"""Rows of a table are int16 at most."""
BLOCK_VOXELS = 2**20

Combination = tuple[tuple[int, int], ...]
"""Pairs of a part (a layer of a file, a class, a region) and which of its options, 1 or more, holds here."""


def blocks(*volumes: Shaped[np.ndarray, "..."]) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield views of volumes of one shape, some planes at a time, in the order in which the first lies in memory."""
    if not volumes[0].flags.c_contiguous:
        volumes = tuple(volume.T for volume in volumes)
    planes = max(1, BLOCK_VOXELS // max(1, volumes[0][:1].size))
    for start in range(0, len(volumes[0]), planes):
        yield tuple(volume[start : start + planes] for volume in volumes)


class Combinations:
    """Number combinations as they are found; 0 is the empty one.

    A volume starts with zeros and takes up one part after the other: only voxels where the part has an option are
    touched, so many sparse masks cost little.
    """

    def __init__(self) -> None:
        self.found: list[Combination] = [()]
        self._numbers: dict[Combination, int] = {(): 0}

    def number(self, combination: Combination) -> int:
        """Return the number of a combination; a new one gets the next.

        Raises:
            ValueError: There would be more than a table can hold.
        """
        number = self._numbers.setdefault(combination, len(self.found))
        if number == len(self.found):
            if number > MOST:
                raise ValueError(f"structures overlap in more than {MOST} ways: these are noise, or no masks")
            self.found.append(combination)
        return number

    def extend(self, codes: Integer[np.ndarray, "*shape"], part: int, options: Shaped[np.ndarray, "*shape"]) -> None:
        """Add a part's options (0 or false: none) to the numbers in a volume, in place."""
        for own, given in blocks(codes, options):
            chosen = given != 0
            taken = given[chosen].astype(np.int64)
            if not taken.size:
                continue
            count = int(taken.max()) + 1
            pairs = own[chosen] * np.int64(count) + taken
            occurring = np.flatnonzero(np.bincount(pairs))
            numbers = np.zeros(occurring[-1] + 1, dtype=codes.dtype)
            for pair in occurring.tolist():
                code, option = divmod(pair, count)
                numbers[pair] = self.number((*self.found[code], (part, option)))
            own[chosen] = numbers[pairs]
