"""Tensors that arrive in another shape than they left: rows of a head whose classes changed, channels of the image."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_atlas.networks.base import Network
from lightning_atlas.networks.detection.base import BACKGROUND, Detector

HeadRule = Literal["by_name", "fresh"]
"""What the head's last layer takes of weights: the outputs of classes that both sides have, or nothing."""


def output_names(outputs: int, classes: Sequence[str]) -> tuple[str, ...] | None:
    """Name the outputs of a head: the classes (sigmoid), background before them (softmax); `None` for another count."""
    if not classes or outputs not in (len(classes), len(classes) + 1):
        return None
    return tuple(classes) if outputs == len(classes) else (BACKGROUND, *classes)


def tensor_names(network: Network, tensor: str, entries: int, classes: Sequence[str]) -> tuple[str, ...] | None:
    """Name the entries of a tensor of a head; `None` where there are not as many as a network of its kind would have.

    Args:
        network: Says what its entries are, if it finds boxes.
        tensor: Name of the tensor.
        entries: How many it has.
        classes: Of the head that it is of, without background.
    """
    if not isinstance(network, Detector):
        return output_names(entries, classes)
    names = network.output_names(classes).get(tensor, ())
    return names if classes and len(names) == entries else None


def same_names(source: Sequence[str], target: Sequence[str]) -> dict[int, int]:
    """Return, for each output of the target whose name the source knows, the source's output of that name.

    Of a name that several outputs have, the first is the source's first, and so on.
    """
    rows = {name: row for row, name in enumerate(_counted(source))}
    return {row: rows[name] for row, name in enumerate(_counted(target)) if name in rows}


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


class Taken(NamedTuple):
    """A tensor in the shape that the network wants.

    Args:
        value: The tensor.
        how: What was taken and what was not.
        fresh: Outputs that stayed as initialised.
    """

    value: Tensor
    how: str
    fresh: tuple[str, ...] = ()


class HeadByName:
    """The outputs of a network, where the classes are known on both sides, or all of them fresh.

    An output whose class the source does not know stays as the network has initialised it. From a sigmoid head into a
    softmax head the background is such an output; the rows of the classes are taken all the same.

    Args:
        network: Already has the outputs for its own classes.
        theirs: Classes of the source in the order of its outputs, without background; empty where not known.
        ours: Classes of the network, likewise.
        fresh: No output is taken, whatever its name.
    """

    def __init__(self, network: Network, theirs: Sequence[str], ours: Sequence[str], fresh: bool = False) -> None:
        self.network, self.theirs, self.ours, self.fresh = network, tuple(theirs), tuple(ours), fresh
        self.axes: dict[str, int] = network.output_axes() if ours or fresh else {}
        """Along which axis the outputs lie, for each tensor that has one for each."""

    def take(self, name: str, tensor: Tensor, target: Tensor) -> Taken | None:
        """Return the tensor with the outputs of the source that have a name here; `None` where names do not tell."""
        axis = self.axes.get(name)
        if self.fresh or axis is None or _without(tensor.shape, axis) != _without(target.shape, axis):
            return None
        theirs = tensor_names(self.network, name, tensor.shape[axis], self.theirs)
        ours = tensor_names(self.network, name, target.shape[axis], self.ours)
        rows = same_names(theirs or (), ours or ())
        if not rows or theirs is None or ours is None or theirs == ours:
            return None
        fresh = tuple(dict.fromkeys(each for row, each in enumerate(ours) if row not in rows))
        kinds = [_kind(theirs), _kind(ours)]
        how = f"{len(theirs)} -> {len(ours)} outputs" + (f" ({' -> '.join(kinds)})" if kinds[0] != kinds[1] else "")
        how += f": {', '.join(dict.fromkeys(ours[row] for row in rows))} taken by name"
        value = head_rows(target, tensor, rows, axis)
        return Taken(value, how + (f"; fresh: {', '.join(fresh)}" if fresh else ""), fresh)

    def refuses(self, name: str) -> bool:
        """Tell whether a tensor may not be taken whole: its outputs are other classes, or are to be fresh."""
        return name in self.axes and (self.fresh or (bool(self.theirs) and self.theirs != self.ours))

    def all_fresh(self, values: Collection[str], targets: Mapping[str, Tensor]) -> list[str]:
        """Return the names of all outputs if nothing was taken for any of them, else none."""
        if not self.axes or any(name in values for name in self.axes):
            return []
        name, axis = next(iter(self.axes.items()))
        return list(dict.fromkeys(tensor_names(self.network, name, targets[name].shape[axis], self.ours) or ()))


def _counted(names: Sequence[str]) -> list[tuple[str, int]]:
    return [(name, names[:row].count(name)) for row, name in enumerate(names)]


def _kind(names: Sequence[str]) -> str:
    return "softmax" if names[0] == BACKGROUND else "sigmoid"


def _without(shape: torch.Size, axis: int) -> tuple[int, ...]:
    return tuple(side for each, side in enumerate(shape) if each != axis)


def start_at_prior(
    network: Network,
    classes: Sequence[str],
    prior: float | Mapping[str, float],
    fresh: Collection[str] | None = None,
) -> None:
    """Set the biases of new outputs so that, before training, they expect each class in its share of the voxels.

    A rare class then starts with small gradients from the many voxels without it. The bias is log(p / (1 - p)) in a
    sigmoid head and log(p) in a softmax head, whose background has what is left; the weights stay as initialised. Of a
    network that finds boxes the shares are those of its anchors or regions.

    Args:
        network: Sized for its classes; changed in place.
        classes: In the order of its outputs, without background.
        prior: Share of the voxels, between 0 and 1: of each class, or one for all of them.
        fresh: Outputs to set, such as the report's `fresh_outputs`; all by default.

    Raises:
        ValueError: A share is missing or impossible, or the head has no biases, as a text head, or other outputs than
            these classes.
    """
    shares = dict(prior) if isinstance(prior, Mapping) else dict.fromkeys(classes, prior)
    if missing := [name for name in classes if name not in shares]:
        raise ValueError(
            f"the prior has no share of {', '.join(missing[:5])}: give each class one, or one number for all"
        )
    shares[BACKGROUND] = 1.0 - math.fsum(shares[name] for name in classes)
    state = network.state_dict()
    ours = [network.class_bias] if isinstance(network, Detector) else network.output_axes()
    biases = {name: state[name] for name in ours if name in state and state[name].ndim == 1}
    if not biases:
        raise ValueError(
            f"the head of {type(network).__name__} has no biases that could start at a prior: leave it out"
        )
    named = {name: tensor_names(network, name, len(bias), classes) for name, bias in biases.items()}
    if not any(named.values()):
        raise ValueError(
            f"the head of {type(network).__name__} has {len(next(iter(biases.values())))} outputs, which are not those "
            f"of {len(classes)} classes, so that none can start at a prior: leave it out"
        )
    for each, names in named.items():
        logit = _log_share if names and _kind(names) == "softmax" else _log_odds
        for row, name in enumerate(names or ()):
            if fresh is None or name in fresh:
                biases[each][row] = logit(name, shares[name])


def _log_share(name: str, share: float) -> float:
    _check_share(name, share)
    return math.log(share)


def _log_odds(name: str, share: float) -> float:
    _check_share(name, share)
    return math.log(share) - math.log1p(-share)


def _check_share(name: str, share: float) -> None:
    if not 0.0 < share < 1.0:
        raise ValueError(
            f"the prior leaves {name} a share of {share:.4g} of the voxels; each must lie between 0 and 1, and those "
            "of all classes of a softmax head must add up to less than 1: give smaller ones"
        )
