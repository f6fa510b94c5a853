"""Labels at a lower resolution, for losses on a network's deeper outputs (Dou et al. 2017, deep supervision)."""

import torch
from jaxtyping import Integer
from torch import Tensor
from torch.nn import functional as F

from lightning_atlas.types import Background, Drawn, Label, States


def coarser(
    label: Label, states: States, drawn: Drawn, background: Background, factor: tuple[int, int, int]
) -> Integer[Tensor, "batch i2 j2 k2"]:
    """Return labels on a grid that is coarser by whole numbers; sizes are rounded up.

    A coarse voxel is known if any of its voxels is, so that annotated planes stay. Among its planes those count on
    which most classes were drawn, and of their known voxels the most frequent meaning; of equally frequent ones the
    row that comes first in the table.

    Args:
        label: Rows of the tables.
        states: Tables.
        drawn: Tables.
        background: Of the tables' rows: a coarse label and what is left over may differ in nothing else.
        factor: Voxels that become one along i, j and k.
    """
    rows = _first_of_equal(states, drawn, background).gather(1, label.flatten(1).long()).view(label.shape)
    weight = _drawn_on_planes(rows, drawn) * (rows != 0)
    rows, weight = _in_cells(rows, factor), _in_cells(weight, factor)
    counting = (weight == weight.amax(dim=-1, keepdim=True)) & (rows != 0)
    ordered = torch.where(counting, rows, 0).sort(dim=-1).values
    frequency = torch.searchsorted(ordered, ordered, right=True) - torch.searchsorted(ordered, ordered)
    winner = (frequency * (ordered != 0)).argmax(dim=-1, keepdim=True)
    return ordered.gather(-1, winner)[..., 0].to(label.dtype)


def _first_of_equal(states: States, drawn: Drawn, background: Background) -> Integer[Tensor, "batch rows"]:
    """Return for each row the first one that means the same: rows of a dataset may be one class of a recipe."""
    table = torch.cat([background.unsqueeze(2), states, drawn.to(states.dtype)], dim=-1)
    same = (table[:, :, None] == table[:, None, :]).all(dim=-1)
    return same.to(torch.uint8).argmax(dim=-1)


def _drawn_on_planes(rows: Integer[Tensor, "batch i j k"], drawn: Drawn) -> Integer[Tensor, "batch i j k"]:
    """Return how many classes were drawn on the three planes through each voxel."""
    batch, total = len(rows), torch.zeros_like(rows)
    for axis in (1, 2, 3):
        planes = rows.movedim(axis, 1).flatten(2)
        there = torch.zeros(batch, planes.shape[1], drawn.shape[1], device=rows.device)
        there.scatter_(2, planes, 1.0)
        classes = (there @ drawn.to(there.dtype) > 0).sum(dim=-1)
        total = total + classes.view([batch, *(-1 if each == axis else 1 for each in (1, 2, 3))])
    return total


def _in_cells(
    volume: Integer[Tensor, "batch i j k"], factor: tuple[int, int, int]
) -> Integer[Tensor, "batch i2 j2 k2 cell"]:
    short = [-size % step for size, step in zip(volume.shape[1:], factor, strict=True)]
    volume = F.pad(volume, (0, short[2], 0, short[1], 0, short[0]))
    for axis, step in enumerate(factor, 1):
        volume = volume.unflatten(2 * axis - 1, (-1, step))
    return volume.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
