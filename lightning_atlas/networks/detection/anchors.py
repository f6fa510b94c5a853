"""The boxes from which a detector's answers are counted: some at each voxel of each level."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Sides = Sequence[float]


def grid_anchors(
    grid: Sequence[int],
    reduction: Sequence[int],
    shapes: Sequence[Sides],
    device: torch.device,
    sides: Sequence[int] = (),
) -> Float[Tensor, "anchors corners"]:
    """Return the boxes of one level, voxel after voxel, around the middle of what a voxel covers of the image.

    A pool without padding leaves a level that covers less than the image: as much is lost at either end.

    Args:
        grid: Voxels of the level along each axis.
        reduction: Voxels of the image along each axis of one of the level.
        shapes: Sides of each box in voxels of the image.
        device: Where they are needed.
        sides: Of the image; by default what the level covers.
    """
    covered = [voxels * step for voxels, step in zip(grid, reduction, strict=True)]
    lost = [max(0, side - each) / 2 for side, each in zip(sides or covered, covered, strict=True)]
    ranges = [
        (torch.arange(voxels, device=device) + 0.5) * step + before
        for voxels, step, before in zip(grid, reduction, lost, strict=True)
    ]
    centres = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1).flatten(0, -2)[:, None]
    half = torch.tensor(shapes, dtype=torch.float32, device=device) / 2
    return torch.cat([centres - half, centres + half], dim=-1).flatten(0, 1)
