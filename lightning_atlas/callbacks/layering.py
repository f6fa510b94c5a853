"""One class for each voxel, where there is room for one only: in a picture and in a label map."""

import torch
from jaxtyping import Bool, Int8, Integer, Shaped
from torch import Tensor


def topmost(inside: Bool[Tensor, "rows classes"]) -> Integer[Tensor, " rows"]:
    """Return c + 1 of the last class c that each row is in, 0 where it is in none: a tumour lies on its organ."""
    values = torch.zeros(len(inside), dtype=torch.int64, device=inside.device)
    for number, column in enumerate(inside.unbind(1), 1):
        values[column] = number
    return values


def row_values(states: Int8[Tensor, "rows classes"]) -> Integer[Tensor, " rows"]:
    """Return what is seen of each row of a label: as `topmost`, and -1 where it may be in a class, but that is open."""
    values = topmost(states == 1)
    return torch.where((values == 0) & (states != 0).any(1), -1, values)


def looked_up(table: Shaped[Tensor, " rows"], rows: Integer[Tensor, "i j k"]) -> Shaped[Tensor, "i j k"]:
    """Replace each voxel's row by what a table says of it, plane by plane, since an index takes eight bytes a voxel."""
    return torch.stack([table[plane.long()] for plane in rows])
