"""What a file says it holds, and how to come by its voxels."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

BUDGET_BYTES = 8 * 2**30
"""Two thousand million voxels once loaded: four times a whole-body CT."""
LARGEST_SPACING_MM = 1000.0
READABLE_KINDS = "biuf"
COPY_AGAIN = "copy it again from where it came"
EXPORT_AGAIN = "export it again"

Voxels = Shaped[np.ndarray, " voxels"]


class BadFileError(ValueError):
    """A file that cannot be used as it is.

    Args:
        file: The file.
        found: What is wrong, to be read after the file's name.
        remedy: What to do about it.
    """

    def __init__(self, file: Path, found: str, remedy: str) -> None:
        super().__init__(file, found, remedy)
        self.file, self.found, self.remedy = file, found, remedy

    def __str__(self) -> str:
        return " ".join(f"{self.file} {self.found}; {self.remedy}".split())


@dataclass(frozen=True, eq=False)
class Header:
    """What a file says of itself.

    Args:
        shape: Voxels along i, j, k.
        affine: From voxels to millimetres (RAS).
        channels: Channels, or layers of a segmentation.
        dtype: How a voxel is stored.
        remarks: What is unusual, though sound.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    channels: int
    dtype: np.dtype
    remarks: tuple[str, ...] = ()

    @property
    def bytes_when_loaded(self) -> int:
        """Memory that the voxels take as float32."""
        return 4 * self.channels * math.prod(self.shape)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distances between voxels along i, j, k."""
        i, j, k = (float(each) for each in np.linalg.norm(self.affine[:3, :3], axis=0))
        return i, j, k


@dataclass(frozen=True, eq=False)
class Container:
    """An open file: its header, and how to come by its voxels.

    Args:
        file: The file.
        header: What it says of itself.
        sizes: Lengths of the axes in the order of the file, the fastest first.
        channel_axis: Which of them counts the channels.
        stored: Starts a stream of the voxels as they are stored.
        slope: Intensities are stored values times this
        intercept: plus this.
    """

    file: Path
    header: Header
    sizes: tuple[int, ...]
    channel_axis: int | None
    stored: Callable[[], Iterator[np.ndarray]]
    slope: float = 1.0
    intercept: float = 0.0

    def values(self) -> Iterator[Voxels]:
        """Yield the voxels, scaled, in the order of the file.

        Raises:
            BadFileError: The file is cut off, damaged, or holds more than it declares.
        """
        for chunk in self.stored():
            scaled = self.slope != 1 or self.intercept != 0
            yield chunk * np.float64(self.slope) + np.float64(self.intercept) if scaled else chunk

    def arranged(self, values: Voxels) -> Shaped[np.ndarray, "channels i j k"]:
        """Give all the voxels their places: a view."""
        array = values.reshape(self.sizes, order="F")
        return array[None] if self.channel_axis is None else np.moveaxis(array, self.channel_axis, 0)


def make_header(
    file: Path,
    sizes: tuple[int, ...],
    channel_axis: int | None,
    affine: Float[np.ndarray, "4 4"],
    dtype: np.dtype,
    remarks: tuple[str, ...] = (),
) -> Header:
    """Return a header whose numbers are plausible and whose voxels fit into the budget.

    Raises:
        BadFileError: They are not, or do not.
    """
    shape = tuple(size for axis, size in enumerate(sizes) if axis != channel_axis)
    if len(shape) != 3 or min(sizes) < 1:
        raise BadFileError(file, f"has the axes {'x'.join(map(str, sizes))}", "save it as one volume with three axes")
    if dtype.kind not in READABLE_KINDS:
        raise BadFileError(file, f"holds voxels of type {dtype}", "save it with integers or real numbers, one a voxel")
    channels = 1 if channel_axis is None else sizes[channel_axis]
    header = Header((shape[0], shape[1], shape[2]), affine, channels, dtype, remarks)
    if not np.isfinite(affine).all():
        raise BadFileError(file, "has an affine that is not finite", "write its orientation and spacing again")
    if not all(0 < each <= LARGEST_SPACING_MM for each in header.spacing_mm) or not _upright(affine):
        spacing = "x".join(f"{each:.4g}" for each in header.spacing_mm)
        remedy = "write its spacing in millimetres, and that as its unit"
        raise BadFileError(file, f"has an impossible affine (spacing {spacing} mm)", remedy)
    if header.bytes_when_loaded > BUDGET_BYTES:
        gibibytes = header.bytes_when_loaded / 2**30
        found = f"declares {'x'.join(map(str, sizes))} voxels, {gibibytes:.4g} GiB when loaded"
        remedy = f"crop or resample it below {BUDGET_BYTES / 2**30:g} GiB, or correct its header"
        raise BadFileError(file, found, remedy)
    return header


def _upright(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(abs(np.linalg.det(axes)) > 1e-3)


FIRST_VOXELS, CORNER_VOXELS = 1e-3, 2e-2
"""Origins agree to a thousandth of a voxel; a spacing that was rounded to four digits adds up along a row of voxels."""


def displacement_voxels(
    affine: Float[np.ndarray, "4 4"], other: Float[np.ndarray, "4 4"], shape: tuple[int, int, int]
) -> tuple[float, float]:
    """Return by how many voxels another affine displaces the first voxel, and the corner that it displaces most."""
    corners = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in shape))])
    moved = np.abs((corners @ (np.linalg.inv(affine) @ other).T - corners)[:, :3]).max(axis=1)
    return float(moved[0]), float(moved.max())


def one_grid(displacement: tuple[float, float]) -> bool:
    """Tell whether a displacement (see above) is noise in two headers of one grid, not a shift."""
    first, corner = displacement
    return first <= FIRST_VOXELS and corner <= CORNER_VOXELS


def beside(file: Path, name: str) -> Path:
    """Return the file of voxels that a header names.

    Raises:
        BadFileError: It lies in another folder, or is missing.
    """
    if Path(name).name != name or "\\" in name:
        raise BadFileError(file, f"keeps its voxels in {name!r}, outside its folder", "put both files into one folder")
    data = file.parent / name
    if not data.is_file():
        raise BadFileError(file, f"keeps its voxels in {name}, which is missing", "copy that file too, beside it")
    return data
