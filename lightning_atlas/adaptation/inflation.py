"""Tensors that arrive in another shape than they left: so far, the rows of a head whose classes changed."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_atlas.networks.base import Network, output_layer

BACKGROUND = "background"


def output_names(outputs: int, classes: Sequence[str]) -> tuple[str, ...] | None:
    """Name the outputs of a softmax head: background, then the classes; `None` where the count does not say that."""
    return (BACKGROUND, *classes) if classes and outputs == len(classes) + 1 else None


def same_names(source: Sequence[str], target: Sequence[str]) -> dict[int, int]:
    """Return, for each output of the target whose name the source knows, the source's output of that name."""
    rows = {name: row for row, name in enumerate(source)}
    return {row: rows[name] for row, name in enumerate(target) if name in rows}


def head_rows(target: Tensor, source: Tensor, rows: Mapping[int, int], axis: int = 0) -> Tensor:
    """Return a copy of `target` in which the outputs in `rows` are those of `source`.

    Args:
        target: The freshly initialised weight or bias.
        source: The trained one: any number of outputs, all other sides equal.
        rows: Output of the target: output of the source.
        axis: Along which the outputs lie (1 in the weight of a transposed convolution).
    """
    result = target.detach().clone()
    for ours, theirs in rows.items():
        result.select(axis, ours).copy_(source.select(axis, theirs))
    return result


class HeadByName:
    """The output layer of a network, where the classes are known on both sides and are not the same.

    Args:
        network: Already has the outputs for its own classes.
        theirs: Classes of the source in the order of its outputs, without background; empty where not known.
        ours: Classes of the network, likewise.
    """

    def __init__(self, network: Network, theirs: Sequence[str], ours: Sequence[str]) -> None:
        self.theirs, self.ours = tuple(theirs), tuple(ours)
        self.axes: dict[str, int] = {}
        """Along which axis the outputs lie, for each tensor of the layer under each of its names."""
        if self.theirs and self.ours and self.theirs != self.ours:
            layer = network.get_submodule(output_layer(network))
            axes = {id(layer.weight): int(isinstance(layer, nn.ConvTranspose3d)), id(layer.bias): 0}
            named = network.named_parameters(remove_duplicate=False)
            self.axes = {name: axes[id(each)] for name, each in named if id(each) in axes}

    def take(self, name: str, tensor: Tensor, target: Tensor) -> tuple[Tensor, str, bool] | None:
        """Return the new tensor, what was taken, and whether that is all; `None` where names do not tell."""
        axis = self.axes.get(name)
        if axis is None or _without(tensor.shape, axis) != _without(target.shape, axis):
            return None
        theirs = output_names(tensor.shape[axis], self.theirs)
        ours = output_names(target.shape[axis], self.ours)
        if theirs is None or ours is None:
            return None
        rows = same_names(theirs, ours)
        fresh = ", ".join(each for row, each in enumerate(ours) if row not in rows)
        how = f"{len(theirs)} -> {len(ours)} outputs: {', '.join(ours[row] for row in rows)} taken by name"
        return head_rows(target, tensor, rows, axis), how + (f"; fresh: {fresh}" if fresh else ""), not fresh


def _without(shape: torch.Size, axis: int) -> tuple[int, ...]:
    return tuple(side for each, side in enumerate(shape) if each != axis)
