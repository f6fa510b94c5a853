"""Weights that move by a product of two small matrices, and the way back to plain ones."""

import math
import re
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = (nn.Linear, nn.Conv3d, nn.ConvTranspose3d)
"""Layers whose `weight` can be given a low-rank update."""
NAMES = re.compile(r"(?P<layer>.*\.|)parametrizations\.weight\.(?P<part>original|0\.A|0\.B|0\.scale)")
"""What `torch.nn.utils.parametrize` makes of the name of such a weight."""
PARTS = ("original", "0.A", "0.B", "0.scale")


class LowRank(nn.Module):
    """Return a weight plus `scale` times B A, both in the shape of the weight.

    Of a convolution with groups each group has matrices of its own, stacked here by rows. Because it is the weight that
    changes, whatever the layer does with it (stride, dilation, padding of any mode) is as before, and the merged layer
    computes the same.

    Args:
        layer: Its weight sets the sizes; a weight that is smaller than the rank gets matrices of its own size.
        rank: Columns of B and rows of A.
        scale: Factor of their product.
    """

    scale: Tensor

    def __init__(self, layer: nn.Module, rank: int, scale: float) -> None:
        super().__init__()
        assert isinstance(layer, LAYERS)
        weight, groups = layer.weight, 1 if isinstance(layer, nn.Linear) else layer.groups
        rows, columns = weight.shape[0] // groups, weight[0].numel()
        rank = min(rank, rows, columns)
        self.A = nn.Parameter(weight.new_zeros(groups * rank, columns))
        self.B = nn.Parameter(weight.new_zeros(groups * rows, rank))
        self.register_buffer("scale", weight.new_tensor(scale))
        # The side of the outputs starts at 0, that of the inputs as Linear and Conv3d start; a transposed convolution
        # has its inputs in the rows.
        drawn, inputs = (self.B, rows) if isinstance(layer, nn.ConvTranspose3d) else (self.A, columns)
        nn.init.uniform_(drawn, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as it is to be used."""
        return updated(weight, self.A, self.B, self.scale)


def updated(
    weight: Float[Tensor, "rows ..."],
    a: Float[Tensor, "group_ranks columns"],
    b: Float[Tensor, "rows rank"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, "rows ..."]:
    """Return a weight plus `scale` times the product of its matrices, in the precision of the weight."""
    rank, columns = b.shape[1], a.shape[1]
    with torch.autocast(weight.device.type, enabled=False):
        product = torch.bmm(b.view(a.shape[0] // rank, -1, rank), a.view(-1, rank, columns))
        return weight + scale * product.view_as(weight)


def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in which no weight is in parts any more, in the same order and under the layers' own names.

    Args:
        tensors: Of a state dict; without any such parts it comes back as it is.

    Raises:
        ValueError: A part is missing, or the parts do not fit each other.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if (found := NAMES.fullmatch(name)) is None:
            result[name] = tensor
        elif found["part"] == "original":
            result[f"{found['layer']}weight"] = _merged_weight(found["layer"], tensors)
        elif f"{found['layer']}parametrizations.weight.original" not in tensors:
            raise ValueError(f"{name} is a part of a low-rank weight whose original is missing: the file is not whole")
    return result


def _merged_weight(layer: str, tensors: Mapping[str, Tensor]) -> Tensor:
    names = [f"{layer}parametrizations.weight.{part}" for part in PARTS]
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(
            f"{layer}weight is in parts, and {missing[0]} is missing: only those that LoRA here writes can be merged"
        )
    weight, a, b, scale = (tensors[name] for name in names)
    if not _fit(weight, a, b, scale):
        shapes = ", ".join("x".join(map(str, each.shape)) or "scalar" for each in (weight, a, b, scale))
        raise ValueError(f"{layer}weight: its low-rank parts do not fit each other ({shapes}); the file is damaged")
    return updated(weight, a, b, scale)


def _fit(weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> bool:
    if not (weight.ndim >= 2 and a.ndim == b.ndim == 2 and scale.ndim == 0 and weight.numel() and b.numel()):
        return False
    groups, rest = divmod(a.shape[0], b.shape[1])
    sides = (b.shape[0], a.shape[1]) == (weight.shape[0], weight[0].numel())
    return sides and rest == 0 and groups > 0 and weight.shape[0] % groups == 0


def low_rank_updates(layers: Iterable[nn.Module], rank: int, scale: float) -> None:
    """Give the weight of each layer a low-rank update that is 0 as yet; a weight that layers share gets one.

    Args:
        layers: Of the kinds in `LAYERS`; changed in place.
        rank: As in `LowRank`.
        scale: As in `LowRank`.
    """
    updates: dict[int, LowRank] = {}
    for layer in layers:
        update = updates.setdefault(id(layer.weight), LowRank(layer, rank, scale))
        parametrize.register_parametrization(layer, "weight", update)
