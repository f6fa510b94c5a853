"""Which planes of its kernels a training moves: measured by their gradients, told, and filled where none ever was."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Filling = Literal["keep", "zero", "nearest"]
Kernel = Float[Tensor, "outputs inputs i j k"]
Taps = Bool[Tensor, "i j k"]
"""Of each number of a kernel that stands at one place of it, whether one of them ever had a gradient."""

AXES = "ijk"
SHOWN = 8
"""Lines that are printed."""
BECAME: dict[Filling, str] = {
    "keep": "left as they are",
    "zero": "set to 0",
    "nearest": "filled with the nearest trained plane",
}


class Untrained(NamedTuple):
    """What was never trained of one kernel.

    Args:
        kernel: Its name.
        size: Its sides along i, j, k.
        planes: Axis -> places along it at which nothing of the kernel ever had a gradient.
    """

    kernel: str
    size: tuple[int, int, int]
    planes: dict[str, list[int]]

    def __str__(self) -> str:
        sides = dict(zip(AXES, self.size, strict=True))
        return "; ".join(
            f"{', '.join(map(str, some))} of {sides[axis]} along {axis}" for axis, some in self.planes.items()
        )


class TrainedTaps:
    """Keeps of each kernel where the loss ever had a gradient.

    What lies in zero padding for every output has none: at depth 3 the two outermost planes of a kernel of 7. Only
    kernels of which something is still without a gradient are looked at, so that the first step costs a pass over all
    gradients, and later ones next to nothing.
    """

    def __init__(self) -> None:
        self.seen: dict[str, Taps] = {}
        self._whole: set[str] = set()
        self._looks = 0

    def look(self, network: nn.Module) -> None:
        """Add what the gradients of a step show; what is not finite shows nothing, since such a step is left out."""
        self._looks += 1
        for name, kernel in network.named_parameters():
            if name in self._whole or kernel.ndim != 5 or kernel.grad is None:
                continue
            found = local(kernel.grad).nan_to_num(0.0, 0.0, 0.0).ne(0).any(0).any(0)
            self.seen[name] = self.seen[name].to(found.device) | found if name in self.seen else found
        if self._looks & (self._looks - 1) == 0:  # 1, 2, 4, ...: to ask for it waits for the device
            self._whole |= {name for name, each in self.seen.items() if bool(each.all())}

    def unite(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Add what other processes saw, each of which holds a part of every kernel.

        Args:
            reduce: Returns the largest value over all processes.
        """
        self.seen = {name: reduce(each.to(torch.uint8)).bool() for name, each in self.seen.items()}

    def state_dict(self) -> dict[str, Taps]:
        """Return what was seen, on the CPU."""
        return {name: each.cpu() for name, each in self.seen.items()}

    def load_state_dict(self, state: Mapping[str, Taps]) -> None:
        """Go on from what `state_dict` returned."""
        self.seen = dict(state)

    def untrained(self) -> list[Untrained]:
        """Return the kernels of which some, but not all, was never trained."""
        planes = {name: untrained_planes(each.cpu()) for name, each in self.seen.items() if bool(each.any())}
        return [
            Untrained(name, _sides(self.seen[name]), {axis: some for axis, some in each.items() if some})
            for name, each in planes.items()
            if any(each.values())
        ]


def untrained_planes(taps: Taps) -> dict[str, list[int]]:
    """Return, for each axis, the places along it at which nothing was trained."""
    planes = [taps.movedim(axis, 0).flatten(1).any(1).tolist() for axis in range(3)]
    return {
        axis: [place for place, trained in enumerate(some) if not trained]
        for axis, some in zip(AXES, planes, strict=True)
    }


def filled(kernel: Kernel, taps: Taps, how: Filling) -> Kernel:
    """Return a kernel whose untrained planes have other values; an image as deep as those trained on is answered alike.

    Args:
        kernel: Or a part of its outputs.
        taps: Where it was trained; where it was nowhere, it stays as it is.
        how: `keep`, `zero`, or `nearest`: the values of the nearest trained plane.
    """
    if how == "keep" or not bool(taps.any()):
        return kernel
    value = kernel
    for axis, lacking in enumerate(untrained_planes(taps.cpu()).values(), 2):
        if not lacking:
            continue
        trained = [place for place in range(kernel.shape[axis]) if place not in lacking]
        source = [min(trained, key=lambda other: abs(other - place)) for place in range(kernel.shape[axis])]
        value = value.index_select(axis, torch.tensor(source, device=kernel.device))
        if how == "zero":
            value = value.index_fill(axis, torch.tensor(lacking, device=kernel.device), 0.0)
    return value


def strength(kernel: Kernel, taps: Taps) -> float:
    """Return the root mean square of what was never trained over that of the rest; NaN where there is neither."""
    squares = kernel.detach().float().square().mean((0, 1))
    return float((squares[~taps].mean() / squares[taps].mean()).sqrt())


def told(found: list[Untrained], ratios: Mapping[str, float], how: Filling) -> list[str]:
    """Return lines on what was never trained, like kernels in one.

    Args:
        found: What was never trained.
        ratios: Kernel -> its `strength` as training left it.
        how: What became of it.
    """
    if not found:
        return ["every plane of every kernel was trained"]
    alike: dict[str, list[str]] = defaultdict(list)
    for each in found:
        alike[str(each)].append(each.kernel)
    lines = [
        f"  {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {planes} "
        f"({min(ratios[name] for name in names):.2g} of the others' strength)"
        for planes, names in alike.items()
    ]
    more = [f"  and {len(lines) - SHOWN} more lines in taps.json"] if len(lines) > SHOWN else []
    return [f"planes of kernels that no gradient of this run reached, {BECAME[how]}:", *lines[:SHOWN], *more]


def as_table(found: list[Untrained], ratios: Mapping[str, float]) -> dict[str, Any]:
    """Return plain values for each kernel of which something was never trained."""
    return {
        each.kernel: {"size": list(each.size), "untrained": each.planes, "strength": ratios[each.kernel]}
        for each in found
    }


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that processes may share; then all must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sides(taps: Taps) -> tuple[int, int, int]:
    i, j, k = taps.shape
    return i, j, k
