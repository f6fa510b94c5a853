"""Augmentation of whole batches on the device where they are."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_atlas.data.augmentation.intensity import Intensity
from lightning_atlas.data.augmentation.spatial import Size, Spatial, Triple, enlarged, moved, voxel_map
from lightning_atlas.data.boxes import carried
from lightning_atlas.types import Batch, Boxes

MOVE, EFFECT = 0, 1
"""Names of the streams of random numbers."""


class BatchAugmentation:
    """Turns, scales and mirrors patches and changes their intensities, on any device.

    What a sample gets depends on its seed alone, not on who shares its batch. The defaults are those of nnU-Net v2.

    Args:
        spatial: Turns, zooms and reversed axes; image and label are read once, through the composed map.
        intensity: Noise, blur, brightness, contrast, low resolution and gamma.
        swap_sides: Where the composed map is a mirroring, classes that are each other's mirror image by name
            (`kidney_left`, `kidney_right`) change places. Without it mirroring is refused where classes have sides.

    Source: nnU-Net v2, `nnUNetTrainer.get_training_transforms`, with the transforms of batchgeneratorsv2:
        https://github.com/MIC-DKFZ/nnUNet/blob/017de4adbc55709423ac569c51191df8a6af7ee5/nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py
    Differs: nnU-Net turns in voxels, and shears where the patch has unequal sides; we turn in millimetres. It decides
        by the sides of the patch whether planes stay whole, we by those of a voxel. Beyond the patch it has 0 and the
        background; we have the least value and row 0, so no loss. It never swaps sides.
    """

    def __init__(
        self, spatial: Spatial | None = None, intensity: Intensity | None = None, swap_sides: bool = False
    ) -> None:
        self.spatial = spatial or Spatial()
        self.intensity = intensity or Intensity()
        self.swap_sides = swap_sides

    @property
    def mirrored_axes(self) -> tuple[str, ...]:
        """The axes that are reversed."""
        mirroring = self.spatial.mirroring
        return tuple(axis for axis in "ijk" if axis in mirroring.axes and mirroring.probability)

    def margin(self, size: Size, spacing_mm: Float[np.ndarray, "cases 3"]) -> Size:
        """Return the size of the patches to cut from cases of these spacings, so that all that is read is there."""
        sizes = [self.spatial.source_size(size, _triple(each)) for each in np.unique(spacing_mm.round(4), axis=0)]
        i, j, k = (int(side) for side in np.max(sizes, axis=0))
        return i, j, k

    def margin_of(self, seed: int, size: Size, spacing_mm: Float[np.ndarray, "3"]) -> Size:
        """Return the size of the patch that the sample of a seed needs; for three in four that is `size`."""
        matrix = self.spatial.draw(_stream(seed, MOVE), _triple(spacing_mm)).matrix(_triple(spacing_mm))
        return enlarged(size, np.abs(matrix) @ ((np.array(size) - 1) / 2))

    @torch.no_grad()
    def __call__(self, batch: Batch, size: Size, pairs: Sequence[tuple[int, int]]) -> Batch:
        """Return patches of `size`, read about the middle of the given ones.

        `affine` goes with the voxels, as do `boxes`, which stay whole where they reach beyond the patch; `spacing_mm`
        stays, for a scaled patch stands for another body at the same spacing.

        Args:
            batch: Patches, larger than `size` where that is to be seen at the corners; it stays as it is.
            size: Voxels along i, j, k.
            pairs: Columns of classes that are each other's mirror image: `contract.side_pairs(classes)`.

        Raises:
            ValueError: The patches are smaller than `size`.
        """
        source = tuple(batch["label"].shape[1:])
        if any(a < b for a, b in zip(source, size, strict=True)):
            raise ValueError(
                f"augment: patches of {list(source)} voxels are less than the {list(size)} to be made of them"
            )
        new = cast(Batch, {**batch})
        new["image"] = batch["image"].new_empty((*batch["image"].shape[:2], *size))
        new["label"] = batch["label"].new_empty((len(batch["label"]), *size))
        new["affine"] = batch["affine"].clone()
        new["states"], new["drawn"] = batch["states"].clone(), batch["drawn"].clone()
        swapped = _swapped(batch["states"].shape[2], pairs)
        boxes = list[Boxes]()
        # One sample at a time: then its voxels are the same to the bit in any batch, and only what was drawn is done.
        for n, (seed, spacing) in enumerate(zip(batch["seed"].tolist(), batch["spacing_mm"].tolist(), strict=True)):
            spacing_mm = _triple(spacing)
            matrix = self.spatial.draw(_stream(seed, MOVE), spacing_mm).matrix(spacing_mm)
            image, new["label"][n] = moved(batch["image"][n], batch["label"][n], matrix, size)
            new["image"][n] = self._changed(image, seed, spacing_mm)
            there = voxel_map(matrix, cast(Size, source), size)
            new["affine"][n] = batch["affine"][n] @ torch.from_numpy(there).to(batch["affine"])
            swaps = self.swap_sides and np.linalg.det(matrix) < 0
            if swaps:
                new["states"][n] = batch["states"][n][:, swapped]
                new["drawn"][n] = batch["drawn"][n][:, swapped]
            if "boxes" in batch:
                boxes.append(_moved_boxes(batch["boxes"][n], there, swapped if swaps else None))
        if "boxes" in batch:
            new["boxes"] = boxes
        return new

    def _changed(self, image: Float[Tensor, "channels i j k"], seed: int, spacing_mm: Triple) -> Tensor:
        kept = self.spatial.kept_axes(spacing_mm)
        channels = list(image)
        for number, effect in enumerate(self.intensity.effects()):
            changes = effect.changes(_stream(seed, EFFECT, number), len(channels), kept)
            channels = [change(each) if change else each for each, change in zip(channels, changes, strict=True)]
        return torch.stack(channels)


def _moved_boxes(boxes: Boxes, back: Float[np.ndarray, "4 4"], swapped: list[int] | None) -> Boxes:
    moved = carried(boxes, np.linalg.inv(back))
    if swapped is None:
        return moved
    return moved._replace(classes=torch.tensor(swapped, device=moved.classes.device)[moved.classes])


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed % 2**64, *key]))


def _triple(values: Sequence[float] | np.ndarray) -> Triple:
    i, j, k = (float(value) for value in values)
    return i, j, k


def _swapped(classes: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    order = list(range(classes))
    for one, other in pairs:
        order[one], order[other] = other, one
    return order
