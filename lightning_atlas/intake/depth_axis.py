"""Along which axis slices lie in 3D kernels, seen from their numbers: cubic kernels fit any way round by shape."""

from collections.abc import Mapping
from itertools import islice

from jaxtyping import Float
from torch import Tensor

Kernel = Float[Tensor, "outputs inputs i j k"]
AXES = "ijk"
LOOKED_AT = 8
"""Cubic kernels of a file that are looked at."""
UNTRAINED = 0.5
"""Taps that were never trained are smaller than this share of the outer ones along the other axes."""
TALL = 7
"""Taps along the slices of a first kernel, of which three slices never meet the outer two with a trained voxel."""


def inflated_along(kernel: Kernel) -> str:
    """Return the axes along which a kernel is a flat one repeated, or a flat one between zeros.

    Args:
        kernel: Sides of one voxel say nothing.
    """
    found = ""
    for axis in range(3):
        taps = kernel.unbind(2 + axis)
        middle = taps[len(taps) // 2]
        close = 1e-3 * middle.abs().amax()
        others = [each for number, each in enumerate(taps) if number != len(taps) // 2]
        repeated = all((each - middle).abs().amax() <= close for each in others)
        if len(taps) > 1 and (repeated or not any(each.any() for each in others)):
            found += AXES[axis]
    return found


def check_inflated(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse kernels that were inflated from 2D ones along another axis than k, where slices lie here.

    Args:
        tensors: As the network would take them.
        origin: The file, for the error.

    Raises:
        ValueError: All cubic kernels that are looked at are flat ones repeated, or between zeros, along i or along j;
            one that is 0 throughout is not looked at.
    """
    cubic = (name for name, each in tensors.items() if each.ndim == 5 and min(each.shape[2:]) > 1 and each.any())
    looked = {name: inflated_along(tensors[name].float()) for name in islice(cubic, LOOKED_AT)}
    along = set(looked.values())
    if len(along) != 1 or (axis := along.pop()) not in ("i", "j"):
        return
    raise ValueError(
        f"{origin} holds 2D kernels inflated along {axis} ({next(iter(looked))} and {len(looked) - 1} more), and\n"
        "slices lie along k here: they would lie across the wrong axis. Say how the axes of its kernels lie:\n"
        f"{_turn(axis)}"
    )


def check_idle(name: str, kernel: Tensor, origin: str) -> None:
    """Refuse a first kernel whose outer taps are idle along another axis than k: three slices taught it, and lay there.

    Args:
        name: Of the kernel that reads the image.
        kernel: As the network would take it; looked at if it has seven taps along each axis and reads a single channel.
        origin: The file, for the error.

    Raises:
        ValueError: Its outer taps along i, or along j, are much smaller than those along both other axes.
    """
    if not _is_tall(kernel):
        return
    outer = outer_taps(kernel.float())
    axis = min(range(3), key=lambda other: outer[other])
    if AXES[axis] == "k" or outer[axis] >= UNTRAINED * sorted(outer)[1]:
        return
    raise ValueError(
        f"{origin}: the outer taps of {name} are idle along {AXES[axis]} (of root mean square {_sizes(outer)}), as "
        "three slices leave them, and slices lie along k here. If they are published weights,\n"
        "model.weights NAME=FILE reads the file as `weights show NAME` says; else say how the axes of its kernels "
        f"lie:\n{_turn(AXES[axis])}"
    )


def check_three_slices(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse a first kernel of a network trained on three slices whose idle taps do not lie along k.

    Among three slices, with zeros beyond them, the two outer of seven taps meet zeros alone: nothing trains them, and
    weight decay makes them small.

    Args:
        tensors: As the network would take them; the first kernel is the first of seven taps along each axis that
            reads a single channel.
        origin: The file, for the error.

    Raises:
        ValueError: Its outer taps along k are not much smaller than those along i and j.
    """
    name = next((name for name, each in tensors.items() if _is_tall(each)), None)
    if name is None:
        return
    outer = outer_taps(tensors[name].float())
    if outer[2] < UNTRAINED * min(outer[:2]):
        return
    idle = AXES[min(range(3), key=lambda axis: outer[axis])]
    raise ValueError(
        f"{origin}: {name} is said to have learned from pictures of three slices, which never train its outer taps "
        f"along the slices, k; of root mean square these are {_sizes(outer)}.\n"
        f"Either the file is another one, or its slices lie along {idle}: give it without the name of published "
        "weights, and model.init_args.adapters: [{class_path: KernelAxes, init_args: {axes: ORDER}}]"
    )


def outer_taps(kernel: Kernel) -> tuple[float, float, float]:
    """Return, for each axis, the root mean square of the two outer planes of a kernel."""
    i, j, k = (float(kernel.movedim(axis, 0)[[0, -1]].square().mean().sqrt()) for axis in (2, 3, 4))
    return i, j, k


def _is_tall(kernel: Tensor) -> bool:
    return tuple(kernel.shape[1:]) == (1, TALL, TALL, TALL)


def _sizes(outer: tuple[float, float, float]) -> str:
    return ", ".join(f"{size:.2g} along {axis}" for axis, size in zip(AXES, outer, strict=True))


def _turn(axis: str) -> str:
    order = {"i": "kji", "j": "jki"}[axis]
    return f"model.init_args.adapters: [{{class_path: KernelAxes, init_args: {{axes: {order}}}}}]"
