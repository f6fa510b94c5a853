"""From what a dataset is like to a recipe's numbers, by stated rules, each with its reason.

The rules for grid, intensities and patch are nnU-Net's in short (Isensee et al. 2021, Nature Methods 18, 203-211).
Given weights decide on all that their contract states. Numbers of steps are starting points, not optima.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lightning_atlas.contract import Contract
from lightning_atlas.data.adoption import expected_of
from lightning_atlas.data.cases import Case, Split
from lightning_atlas.data.labels.grids import Axis
from lightning_atlas.data.sources.splits import Splits
from lightning_atlas.data.survey.fingerprint import Fingerprint
from lightning_atlas.data.survey.fingerprint_case import LEVELS, CaseFingerprint

Triple = tuple[float, float, float]
Size = tuple[int, int, int]

ANISOTROPIC = 3.0
"""From this ratio of the sides of a voxel on, planes are apart: their distance is chosen otherwise, nothing tilts."""
CT_PERCENTILES, MR_PERCENTILES = (0.5, 99.5), (1.0, 99.0)
AIR_HU = -200.0
"""Darker voxels than this are in every CT that is in Hounsfield units, and in hardly any other scan."""
SHORT, SIDE, SHORT_SIDE = 48, 16, 8
"""Sides of a patch are multiples of `SIDE`, and where a scan has fewer voxels than `SHORT`, of `SHORT_SIDE`."""
PROGRAM_BYTES = 600_000_000
VOXEL_BYTES, OUTPUT_BYTES = 1300, 20
"""What a step takes: the program, then for each voxel of its patches so much, and so much for each output.

Measured as the growth of the resident set over a forward and backward pass of `UNet` (16, 32, 64, 96) in float32 with
the loss of `Segmentation`, on a CPU with torch 2.10: 1319, 1484, 1895 and 2208 bytes a voxel at 2, 10, 30 and 62
outputs; twice the features took twice the bytes. The fit prints what it measures itself before its first step.
"""
DEFAULT_BYTES = 2_000_000_000
STEP_PATCHES, MOST_PATCHES = 2, 8
EPOCH_PATCHES = 200
PATCHES_PER_CASE, FEWEST_PATCHES, MOST_IN_ALL = 100, 1000, 25_000
FROM_SCRATCH = 3
"""Times as many patches as from weights."""
FEWEST_PLANES, THIN_MM = 10, 50.0
"""A single scan is divided by planes if it has so many and is so high."""
UNDECLARED = "scans of no declared modality"
FEW_CASES, MANY_CASES = 3, 50
FIRST_FEW = 4
ALIKE = 1.1
FEWEST_VOXELS = 27
"""A structure of fewer voxels, three along each axis, is hardly one."""


@dataclass(frozen=True)
class Proposal:
    """A recipe's numbers.

    Args:
        contract: Orientation, spacing and intensities that the recipe makes of each scan; it has no classes.
        patch: Voxels along i, j, k.
        batch_size: Patches in a step.
        per_epoch: Patches in an epoch.
        epochs: Epochs.
        flat_axis: Axis across the planes out of which augmentation must not turn; `None` where it may turn freely.
        adaptation: What moves: a class of the adaptations; `None` from scratch.
        reasons: Key of the recipe -> why it is so.
    """

    contract: Contract
    patch: Size
    batch_size: int
    per_epoch: int
    epochs: int
    flat_axis: Axis | None
    adaptation: str | None
    reasons: dict[str, str]


def propose(
    fingerprint: Fingerprint, contract: Contract | None = None, memory_bytes: int | None = None, features: int = 16
) -> Proposal:
    """Choose a recipe's numbers for a dataset.

    Args:
        fingerprint: Of the dataset; scans that will validate or test have no say.
        contract: What the weights to start from expect of an image; `None` from scratch.
        memory_bytes: What the run may take; by default 2 GB, which most computers can spare.
        features: Channels of the network's first level.

    Raises:
        ValueError: There is no scan to train on, or no patch fits into the memory.
    """
    cases = training_cases(fingerprint)
    expected = contract or Contract()
    reasons: dict[str, str] = {}
    orientation = expected.orientation or "RAS"
    reasons["orientation"] = (
        "what the weights expect" if expected.orientation else "i to the right, j to the front, k upwards"
    )
    spacings = np.array([turned(case.spacing_mm, orientation) for case in cases])
    spacing, reasons["spacing_mm"] = (
        (expected.spacing_mm, "what the weights expect") if expected.spacing_mm else chosen_spacing(spacings)
    )
    kept, reasons["normalization"] = _intensities(cases, contract, kinds(fingerprint))
    extents = np.array([turned(case.extent_mm, orientation) for case in cases])
    outputs = len(fingerprint.names) + 1
    reasons["range"] = "what the weights saw" if expected.range else "what the window becomes"
    sizes = _sizes(
        np.round(np.median(extents, axis=0) / spacing), voxel_bytes(outputs, features), memory_bytes, reasons
    )
    flat_axis, reasons["augment"] = _flat_axis(cases, spacing, orientation, plane_split_axis(fingerprint))
    patches, reasons["epochs"] = _patches(len(cases), from_weights=contract is not None)
    per_epoch = max(1, EPOCH_PATCHES // sizes[1]) * sizes[1]
    reasons["per_epoch"] = f"an epoch is {per_epoch // sizes[1]} steps"
    adaptation, reasons["adaptation"] = _adaptation(len(cases)) if contract else (None, "from scratch all moves")
    return Proposal(
        replace(kept, modality=fingerprint.modality, orientation=orientation, spacing_mm=spacing),
        *sizes,
        per_epoch=per_epoch,
        epochs=math.ceil(patches / per_epoch),
        flat_axis=flat_axis,
        adaptation=adaptation,
        reasons=reasons,
    )


def training_cases(fingerprint: Fingerprint) -> list[CaseFingerprint]:
    """Return the scans that train once the patients are divided as `Splits` does it.

    Raises:
        ValueError: There is none.
    """
    declared: dict[tuple[str, str], set[str]] = {}
    for case in fingerprint.cases:
        declared.setdefault((case.dataset, case.patient), set()).add(case.split)
    whole = [case for case in fingerprint.cases if len(declared[case.dataset, case.patient] - {"predict"}) < 2]
    stand_ins = [
        Case(case.subject, _split(case.split), Path(case.subject), patient=case.patient, dataset=case.dataset)
        for case in whole
    ]
    divided = {each.subject: each.split for each in Splits().assign(stand_ins)}
    cases = [case for case in fingerprint.cases if divided.get(case.subject, case.split) == "train"]
    if not cases:
        found = ", ".join(f"{name} {n}" for name, n in fingerprint.summary["splits"].items())
        raise ValueError(f"there is no scan to train on: found {found}; give some the split train and labels")
    return cases


def kinds(fingerprint: Fingerprint) -> str:
    """Return the modality of the scans in words."""
    said = dict.fromkeys(case.modality for case in fingerprint.cases)
    return UNDECLARED if None in said else " and ".join(map(str, said))


def plane_split_axis(fingerprint: Fingerprint) -> Axis | None:
    """Return the axis across which a single scan is divided; `None` where there are more, or it is too small."""
    labelled = [case for case in fingerprint.cases if case.split != "predict"]
    if len(labelled) != 1:
        return None
    (scan,) = labelled
    high = scan.extent_mm["ijk".index(scan.drawn_axis)]
    return scan.drawn_axis if scan.planes >= FEWEST_PLANES and high >= THIN_MM else None


def turned(values: Sequence[float], orientation: str) -> Triple:
    """Return values along right, front and up in the order of other axes, such as `LPS` or `SAR`."""
    i, j, k = (values["RASLPI".index(letter) % 3] for letter in orientation)
    return i, j, k


def chosen_spacing(spacings_mm: Float[np.ndarray, "cases 3"]) -> tuple[Triple, str]:
    """Return a spacing for a network from scratch, and why: never finer than the finest scan."""
    spacing = np.median(spacings_mm, axis=0)
    reason = f"the median of {counted(len(spacings_mm), 'training scan')}"
    coarse = int(np.argmax(spacing))
    if spacing[coarse] > ANISOTROPIC * spacing.min():
        was = spacing[coarse]
        spacing[coarse] = np.percentile(spacings_mm[:, coarse], 10)
        reason += f"; along {'ijk'[coarse]} the 10th percentile, since {was:.4g} mm is over 3 times the finest side"
    i, j, k = (math.ceil(round(float(each) * 1000, 3)) / 1000 for each in spacing)
    return (i, j, k), reason


def looks_like_hounsfield(cases: Sequence[CaseFingerprint]) -> bool:
    """Tell whether every scan has air in Hounsfield units."""
    return all(_first(case).percentiles[LEVELS.index(0.5)] < AIR_HU for case in cases)


def voxel_bytes(outputs: int, features: int = 16) -> float:
    """Return what a step takes for each voxel of its patches: with `UNet` of these features on the first level."""
    return VOXEL_BYTES * features / 16 + OUTPUT_BYTES * outputs


def fitted_patch(shape: Float[np.ndarray, "3"], most_voxels: int | float) -> Size:
    """Return the largest patch in the proportions of a scan: inside it where possible, of so many voxels at most.

    Args:
        shape: Voxels of the scan.
        most_voxels: Exceeded only by the smallest patch of all.
    """
    steps = [SHORT_SIDE if side < SHORT else SIDE for side in shape]
    sides = [max(step, int(side) // step * step) for side, step in zip(shape, steps, strict=True)]
    while math.prod(sides) > most_voxels:
        larger = [axis for axis in range(3) if sides[axis] > steps[axis]]
        if not larger:
            break
        axis = max(larger, key=lambda axis: (sides[axis] / shape[axis], sides[axis]))
        sides[axis] -= steps[axis]
    return sides[0], sides[1], sides[2]


def costs(fingerprint: Fingerprint, contract: Contract) -> list[str]:
    """Return what it costs these scans to be taken to what weights expect, a line each."""
    lines: list[str] = []
    if contract.spacing_mm:
        lines += _grid_costs(fingerprint, contract.spacing_mm, contract.orientation or "RAS")
    modality = fingerprint.modality
    if contract.modality and modality != contract.modality:
        lines.append(f"the weights know {contract.modality}, not {kinds(fingerprint)}")
    if contract.normalization == "window" and contract.window and modality in (contract.modality, None):
        low, high = contract.window
        shares = [case.middle.share_outside(low, high) for case in fingerprint.cases]
        lines.append(
            f"the window {low:g} to {high:g} flattens {np.median(shares):.1%} of what the structures hold (median; "
            f"{max(shares):.1%} in {fingerprint.cases[int(np.argmax(shares))].subject})"
        )
    if contract.classes and fingerprint.names:
        known = [name for name in fingerprint.names if name in contract.classes]
        some = f": {_some(known)}" if known else ""
        lines.append(f"the weights' last layer knows {len(known)} of {len(fingerprint.names)} names{some}")
    return lines


def _grid_costs(fingerprint: Fingerprint, spacing_mm: Triple, orientation: str) -> list[str]:
    own = np.array([turned(case.spacing_mm, orientation) for case in fingerprint.cases])
    ratio = own / spacing_mm
    factors = ratio.prod(axis=1)
    most = int(np.argmax(factors))
    grid = " x ".join(f"{each:g}" for each in spacing_mm)
    lines: list[str] = []
    if factors.max() > ALIKE or factors.min() < 1 / ALIKE:
        lines.append(
            f"on {grid} mm a scan has {np.median(factors):.3g} times its voxels (median; {factors[most]:.3g} times in "
            f"{fingerprint.cases[most].subject})"
        )
    for axis, letter in enumerate("ijk"):
        slabs, fine = int((ratio[:, axis] > 2).sum()), int((ratio[:, axis] < 0.5).sum())
        if slabs:
            high = own[:, axis].max()
            planes = f"{high / spacing_mm[axis]:.2g} planes are made of one, and hold nothing new"
            lines.append(f"{counted(slabs, 'scan')} in slabs of up to {high:.3g} mm along {letter}: {planes}")
        if fine:
            least = f"down to {own[:, axis].min():.3g} mm"
            lines.append(f"{counted(fine, 'scan')} finer along {letter}, {least}: the grid blurs that")
    return lines + _lost_structures(fingerprint, spacing_mm)


def _lost_structures(fingerprint: Fingerprint, spacing_mm: Triple) -> list[str]:
    lines: list[str] = []
    voxel_ml = math.prod(spacing_mm) / 1000
    for name in fingerprint.names:
        present = [each for each in fingerprint.drawings(name) if each.volume_ml > 0]
        if not present:
            continue
        thinnest, volume = (np.median([getattr(each, key) for each in present]) for key in ("thinnest_mm", "volume_ml"))
        if thinnest < max(spacing_mm):
            lines.append(f"{name} is thinner than a voxel of {max(spacing_mm):g} mm: {thinnest:.3g} mm")
        elif volume < FEWEST_VOXELS * voxel_ml:
            lines.append(f"{name} has {volume / voxel_ml:.1f} voxels on this grid")
    return lines


def _intensities(cases: Sequence[CaseFingerprint], contract: Contract | None, kind: str) -> tuple[Contract, str]:
    """Return normalization, window and range, and why."""
    guessed = kind == UNDECLARED and looks_like_hounsfield(cases)
    kind = "CT" if guessed else kind
    if contract and (contract.normalization == "z-score" or (contract.normalization and contract.window)):
        expected = expected_of(contract, kind)
        low, high = expected.window or (0.0, 0.0)
        stand_in = f"for {kind} the percentiles {low:g} and {high:g} above air"
        reason = f"the weights' {contract.normalization} is for {contract.modality}; {stand_in}"
        ends = expected.range or (None if expected.normalization == "z-score" else (0.0, 1.0))
        kept = Contract(normalization=expected.normalization, window=expected.window, range=ends)
        return kept, "what the weights expect" if expected == contract else reason
    if kind != "CT":
        reason = f"{kind}: no fixed scale, so the percentiles 1 and 99 of each scan"
        return Contract(normalization="percentiles", window=MR_PERCENTILES, range=(0.0, 1.0)), reason
    seen = np.array([[case.middle.percentiles[LEVELS.index(each)] for each in CT_PERCENTILES] for case in cases])
    low, high = np.median(seen, axis=0)
    window = (10.0 * math.floor(low / 10), 10.0 * math.ceil(high / 10 + 1e-9))
    where = "in the structures" if all(_has_inside(case) for case in cases) else "in the scans"
    reason = f"the percentiles 0.5 and 99.5 {where} (median of {counted(len(cases), 'scan')}), in Hounsfield units"
    if guessed:
        reason += ", which such dark air means; no modality is declared"
    return Contract(normalization="window", window=window, range=(0.0, 1.0)), reason


def _sizes(
    shape: Float[np.ndarray, "3"], each_voxel: float, memory_bytes: int | None, reasons: dict[str, str]
) -> tuple[Size, int]:
    memory = memory_bytes or DEFAULT_BYTES
    most = (memory - PROGRAM_BYTES) / each_voxel
    least = math.prod(fitted_patch(shape, 0))
    if most < least:
        needed = (PROGRAM_BYTES + least * each_voxel) / 1e9
        raise ValueError(f"no patch fits into {memory / 1e9:.2f} GB; the smallest takes {needed:.2f} GB: --memory 2GB")
    patch = fitted_patch(shape, max(most / STEP_PATCHES, least))
    voxels = math.prod(patch)
    batch_size = max(1, min(MOST_PATCHES, int(most / voxels)))
    typical = "x".join(f"{side:.0f}" for side in shape)
    budget = f"{memory / 1e9:g} GB" + ("" if memory_bytes else " (no --memory was given)")
    reasons["patch"] = f"in the proportions of a median scan of {typical}; {STEP_PATCHES} fit into {budget}"
    taken = (PROGRAM_BYTES + batch_size * voxels * each_voxel) / 1e9
    reasons["batch_size"] = f"about {taken:.2g} GB: {PROGRAM_BYTES / 1e9:g} GB and {each_voxel:.0f} bytes a voxel"
    return patch, batch_size


def _flat_axis(
    cases: Sequence[CaseFingerprint], spacing_mm: Triple, orientation: str, divided: Axis | None
) -> tuple[Axis | None, str]:
    axes: tuple[Axis, Axis, Axis] = ("i", "j", "k")
    if max(spacing_mm) > ANISOTROPIC * min(spacing_mm):
        coarse = axes[int(np.argmax(spacing_mm))]
        return coarse, f"voxels are coarse along {coarse}, so nothing turns or scales out of the planes"
    sparse = [case for case in cases if any(each.drawn_planes < case.planes for each in case.structures.values())]
    if not sparse and divided is None:
        return None, "small turns and zooms; nothing is mirrored, so left stays left"
    across = float("ijk".index(divided or sparse[0].drawn_axis))
    few = f"{len(sparse) or 1} of {counted(len(cases), 'training scan')} drawn on some planes only"
    flat = axes[turned((0.0, 1.0, 2.0), orientation).index(across)]
    return flat, f"{few}, so nothing turns or scales out of the planes"


def _patches(cases: int, from_weights: bool) -> tuple[int, str]:
    times = 1 if from_weights else FROM_SCRATCH
    patches = times * min(max(PATCHES_PER_CASE * cases, FEWEST_PATCHES), MOST_IN_ALL)
    reason = f"{patches} patches in all: {times * PATCHES_PER_CASE} for each of {counted(cases, 'training scan')}"
    limits = f"{times * FEWEST_PATCHES} at least, {times * MOST_IN_ALL} at most"
    return patches, f"{reason}, {limits}; a starting point"


def _adaptation(cases: int) -> tuple[str, str]:
    if cases < FEW_CASES:
        return "FrozenEncoder", f"{counted(cases, 'training scan')} cannot teach an encoder, so it stands still"
    if cases < MANY_CASES:
        return "LayerWiseDecay", f"with {cases} training scans (fewer than {MANY_CASES}) early layers change little"
    return "FullFineTuning", f"{cases} training scans (at least {MANY_CASES}) can move everything"


def _first(case: CaseFingerprint) -> Any:
    return next(iter(case.channels.values())).everywhere


def _has_inside(case: CaseFingerprint) -> bool:
    return next(iter(case.channels.values())).inside is not None


def _split(name: str) -> Split:
    known: dict[str, Split] = {"train": "train", "val": "val", "test": "test", "predict": "predict"}
    return known[name]


def counted(number: int, what: str) -> str:
    """Return a number with its noun."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - FIRST_FEW} more" if len(names) > FIRST_FEW else ""
    return ", ".join(names[:FIRST_FEW]) + more
