"""What a scan is like in the words of a contract, and what the scans of a training are like together."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np

from lightning_atlas.contract import Contract, Triple
from lightning_atlas.data.air import levels_above_air
from lightning_atlas.data.cases import Case
from lightning_atlas.data.formats.series import series_modality
from lightning_atlas.data.store.prepare import Prepared


def measured(prepared: Prepared, contract: Contract) -> Contract:
    """Return one scan as a contract whose `seen` values are its own.

    Args:
        prepared: Made of it.
        contract: What the preparation makes of a scan; its window takes intensities back to the file's units.
    """
    spacing, extent = _grid(prepared)
    levels = prepared.levels or levels_above_air(prepared.image())
    return Contract(
        seen_spacing_mm=(spacing, spacing),
        seen_extent_mm=(extent, extent),
        seen_intensities=tuple(
            tuple((value, value) for value in (_in_units(each, contract) for each in channel)) for channel in levels
        ),
    )


def described(case: Case, prepared: Prepared, contract: Contract) -> Contract:
    """Return what `measured` says with the channels, and with the modality that the files state, or else the case."""
    files = case.channels
    stated = (series_modality(path) for path in files.values() if path.is_dir())
    return replace(
        measured(prepared, contract),
        modality=next((each for each in stated if each), case.modality),
        channels=tuple(files) if len(files) > 1 else ("image",),
    )


def united(scans: Iterable[Contract]) -> dict[str, Any]:
    """Return the `seen` values of a contract that hold all scans between them; none where there is no scan."""
    least: dict[str, np.ndarray] = {}
    largest: dict[str, np.ndarray] = {}
    for scan in scans:  # one at a time: thousands of contracts would take more memory than all else
        values = {key: np.array(getattr(scan, key)[0]) for key in ("seen_spacing_mm", "seen_extent_mm")}
        values["seen_intensities"] = np.array(scan.seen_intensities)[..., 0]
        least = {key: np.minimum(value, least.get(key, value)) for key, value in values.items()}
        largest = {key: np.maximum(value, largest.get(key, value)) for key, value in values.items()}
    if not least:
        return {}
    seen: dict[str, Any] = {
        key: (_triple(least[key]), _triple(largest[key])) for key in ("seen_spacing_mm", "seen_extent_mm")
    }
    ends = np.stack([least["seen_intensities"], largest["seen_intensities"]], axis=-1).round(4)
    seen["seen_intensities"] = tuple(tuple((low, high) for low, high in channel) for channel in ends.tolist())
    return seen


def _grid(prepared: Prepared) -> tuple[Triple, Triple]:
    """Return voxel size and field of view of the file, to the right, front and top."""
    affine = np.array(prepared.file_affine)
    order = np.argsort(nib.orientations.io_orientation(affine)[:, 0])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return _triple(spacing[order]), _triple((spacing * prepared.file_shape)[order])


def _in_units(value: float, contract: Contract) -> float:
    if contract.normalization not in ("window", "linear") or contract.window is None or contract.range is None:
        return value
    (low, high), (start, end) = contract.window, contract.range
    return low + (value - start) / (end - start) * (high - low)


def _triple(values: np.ndarray) -> Triple:
    i, j, k = (round(float(each), 4) for each in values)
    return i, j, k
