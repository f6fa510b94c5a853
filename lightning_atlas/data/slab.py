"""A few planes of a scan that lies in a folder as one numbered picture for each plane."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d+)$")


@dataclass(frozen=True)
class Slab:
    """The planes about one of a scan, at a common distance, each mixed of the two that lie nearest.

    Beyond the planes that are there the last one is repeated, as it is where the distance of planes is not known.

    Args:
        spacing_mm: Of the scan, along i, j and between planes; not above 0 where nobody knows it (NaN is kept as 0).
        planes: How many, the middle one being the file's own.
        interval_mm: Distance at which they are wanted.
        offset: What is added to the values of the files.
    """

    spacing_mm: tuple[float, float, float]
    planes: int = 9
    interval_mm: float = 2.5
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.planes < 1 or self.planes % 2 == 0 or not 0 < self.interval_mm < math.inf:
            raise ValueError(f"a slab has an odd number of planes at a distance above 0 mm, and found {self}")
        known = tuple(each if math.isfinite(each) else 0.0 for each in self.spacing_mm)
        object.__setattr__(self, "spacing_mm", known)  # NaN equals nothing, not even the slab that a table gives back

    def files(self, middle: Path) -> list[Path]:
        """Return the files that are read, from the lowest number.

        Args:
            middle: Picture of the plane in the middle; its name ends in the number of the plane.
        """
        return [numbered(middle, number) for number in self.numbers(middle)]

    def numbers(self, middle: Path) -> list[int]:
        """Return the numbers of the files that are read."""
        return sorted({number for low, high, _ in self.parts(middle) for number in (low, high)})

    def parts(self, middle: Path) -> Iterator[tuple[int, int, float]]:
        """Yield for each plane the numbers of two files and the share of the second."""
        number, reach = plane_number(middle), self.planes // 2
        apart = self.spacing_mm[2]
        step = self.interval_mm / apart if apart > 0 else 0.0
        most = math.ceil(reach * step)
        first, last = (_last(middle, number, way, most) for way in (-1, 1))
        for place in range(-reach, reach + 1):
            at = round(min(max(number + place * step, first), last), 6)  # 2.5 / 1.25 is 2, whatever the last bit says
            yield math.floor(at), math.ceil(at), at - math.floor(at)


def _last(middle: Path, number: int, way: int, most: int) -> int:
    """Return how far the files go on without a gap."""
    beyond = (step for step in range(1, most + 1) if not numbered(middle, number + way * step).is_file())
    return number + way * (next(beyond, most + 1) - 1)


def plane_number(middle: Path) -> int:
    """Return the number at the end of a file's name.

    Raises:
        ValueError: There is none.
    """
    if (found := NUMBERED.match(middle.stem)) is None:
        raise ValueError(f"{middle} has no number of its plane at the end of its name; name it like 109.png")
    return int(found["number"])


def numbered(middle: Path, number: int) -> Path:
    """Return the file of another number in the same folder."""
    found = NUMBERED.match(middle.stem)
    assert found is not None
    return middle.with_name(f"{found['before']}{number:0{len(found['number'])}d}{middle.suffix}")
