"""The features under boxes, on a small grid for each."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Plane = Float[Tensor, "features i j"]
Planar = Float[Tensor, "boxes 4"]


def roi_align(
    features: Plane, boxes: Planar, reduction: tuple[int, int], size: int, points: int = 2
) -> Float[Tensor, "boxes features size size"]:
    """Return the features under each box, interpolated at points of a grid in it and averaged over its cells.

    A voxel of the features has its value in its middle; beyond the middles at the border, that of the border is taken.

    Source: He et al., "Mask R-CNN", 2017, https://arxiv.org/abs/1703.06870; the half-voxel shift as in Detectron2
    (`aligned`).

    Args:
        features: Of one image on one grid.
        boxes: In voxels of the image: the low corner i, j, then the high one.
        reduction: Voxels of the image along i and j of one of the features.
        size: Cells along each side of a box.
        points: Along each side of a cell.
    """
    steps = (torch.arange(size * points, device=boxes.device) + 0.5) / (size * points)
    low, high = boxes.float().unflatten(1, (2, 2)).unbind(1)
    i, j = ((low + steps[:, None, None] * (high - low)) / torch.tensor(reduction, device=boxes.device)).unbind(-1)
    sides = features.shape[1:]
    i, j = (2 * along.T / side - 1 for along, side in zip((i, j), sides, strict=True))
    # `grid_sample` wants the last axis first, and more than half precision for its positions.
    grid = torch.stack(torch.broadcast_tensors(j[:, None, :], i[:, :, None]), dim=-1).flatten(0, 1)
    found = F.grid_sample(features.float()[None], grid[None], padding_mode="border", align_corners=False)[0]
    cells = found.unflatten(1, (len(boxes), size, points)).unflatten(-1, (size, points))
    return cells.mean(dim=(3, 5)).transpose(0, 1)
