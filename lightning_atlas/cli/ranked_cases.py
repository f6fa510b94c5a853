"""Which voxels weights are ranked on: windows of training and validation cases, sorted into units."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_atlas.data import ScanDataModule
from lightning_atlas.data.cases import Case
from lightning_atlas.data.patches import PatchDataset
from lightning_atlas.data.sources.splits import patient_of
from lightning_atlas.networks import Network
from lightning_atlas.ranking.features import Labelled, Reading
from lightning_atlas.ranking.order import Unit
from lightning_atlas.types import Batch

WINDOWS = 4
"""Of each case."""
FEWEST_UNITS = 3
"""With fewer patients scans are resampled, and with fewer scans planes."""
SLABS = 8
"""Into so many groups of neighbours planes are divided."""


def chosen_cases(cases: Sequence[Case], most: int) -> list[Case]:
    """Return cases to train and to validate on, evenly over their order; never those of the test.

    Raises:
        ValueError: There is none with a label.
    """
    labelled = [case for case in cases if case.split in ("train", "val") and case.names]
    if not labelled:
        raise ValueError("the recipe has no labelled case to train or to validate on, and test cases are not looked at")
    step = max(1.0, len(labelled) / most)
    return [labelled[int(number * step)] for number in range(min(most, len(labelled)))]


def windows_of(data: ScanDataModule, network: Network) -> PatchDataset:
    """Return windows centred on structures, as many of each case, of the recipe's size or the next that fits."""
    sides, multiple, least = data.patches.size, network.size_multiple, network.size_offset
    steps = (multiple,) * 3 if isinstance(multiple, int) else multiple
    wanted = [side + (2 * network.context if side <= 2 * network.context else 0) for side in sides]
    i, j, k = (least - min(0, least - side) // step * step for side, step in zip(wanted, steps, strict=True))
    opened = [each for split in ("train", "val") for each in data.opened.get(split, [])]
    patches = replace(
        data.patches,
        size=(i, j, k),
        per_epoch=WINDOWS * len(opened),
        foreground=1.0,
        balance="class",
        jitter=0.0,
        margin=(0, 0, 0),
        shares=None,
    )
    return PatchDataset(opened, patches, seed=data.seed, context=network.context)


class Units:
    """Sorts voxels into units that are resampled and held out as a whole.

    Args:
        cases: All that are looked at.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self.patients = {case.subject: patient_of(case) for case in cases}
        patients, simulated = set(self.patients.values()), any(case.variation for case in cases)
        self.by_plane = len(cases) < FEWEST_UNITS
        self.by_patient = len(patients) >= FEWEST_UNITS
        kind = "simulated subjects, made of one scan" if simulated else "patients"
        self.kind = kind if self.by_patient else f"scans of {len(patients)} patients"
        self.read: list[tuple[Reading, Labelled, list[tuple[object, int]]]] = []

    def add(self, batch: Batch, labelled: Labelled, reading: Reading) -> None:
        """Take in the voxels of one window."""
        (subject,) = batch["subject"]
        planes = _planes(batch["affine"][0], labelled.places) if self.by_plane else [0] * len(labelled.places)
        name = self.patients[subject] if self.by_patient and not self.by_plane else subject
        self.read.append((reading, labelled, [(name, plane) for plane in planes]))

    def divided(self) -> tuple[str, list[Unit]]:
        """Return what the units are, and each with its voxels.

        Raises:
            ValueError: No voxel is drawn in any window.
        """
        keys = sorted({key for _, _, each in self.read for key in each}, key=str if not self.by_plane else _by_plane)
        if not keys:
            raise ValueError("nobody drew a structure of the recipe in the cases to train or to validate on")
        slabs = min(SLABS, len(keys)) if self.by_plane else len(keys)
        number = {key: place * slabs // len(keys) for place, key in enumerate(keys)}
        units = [Unit() for _ in range(slabs)]
        for window, (reading, labelled, each) in enumerate(self.read):
            owners = torch.tensor([number[key] for key in each])
            for owner in owners.unique().tolist():
                units[owner].add(reading, labelled, (owners == owner).nonzero().flatten(), window)
        scans = len({name for name, _ in keys})
        kind = f"groups of neighbouring planes of {scans} scan{'s' * (scans > 1)}" if self.by_plane else self.kind
        return f"{slabs} {kind}", units


def _by_plane(key: tuple[object, int]) -> tuple[str, int]:
    return str(key[0]), key[1]


def _planes(affine: Tensor, places: Tensor) -> list[int]:
    """Return the number of each voxel's plane across the third axis, the same in every window of a scan."""
    across = affine[:3, 2].double()
    spacing = across.norm()
    points = places.double() @ affine[:3, :3].double().T + affine[:3, 3].double()
    return (points @ across / spacing.square()).round().long().tolist()
