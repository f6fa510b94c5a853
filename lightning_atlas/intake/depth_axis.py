"""Along which axis slices lie in 3D kernels, seen from their numbers: cubic kernels fit any way round by shape."""

from collections.abc import Mapping

import torch
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
        ValueError: All cubic kernels that are looked at are flat ones repeated, or between zeros, along i or along j.
    """
    cubic = [name for name, each in tensors.items() if each.ndim == 5 and min(each.shape[2:]) > 1]
    looked = {name: inflated_along(tensors[name].float()) for name in cubic[:LOOKED_AT]}
    along = set(looked.values())
    if len(along) != 1 or (axis := along.pop()) not in ("i", "j"):
        return
    order = {"i": "kji", "j": "jki"}[axis]
    raise ValueError(
        f"{origin} holds 2D kernels inflated along {axis} ({cubic[0]} and {len(looked) - 1} more), and slices lie\n"
        "along k here: they would lie across the wrong axis. Say how the axes of its kernels lie:\n"
        f"model.init_args.adapters: [{{class_path: KernelAxes, init_args: {{axes: {order}}}}}]"
    )


def check_three_slices(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse a first kernel of a network trained on three slices whose idle taps do not lie along k.

    Among three slices, with zeros beyond them, the two outer of seven taps meet zeros alone: nothing trains them, and
    weight decay makes them small.

    Args:
        tensors: As the network would take them; the first kernel is the one that reads a single channel.
        origin: The file, for the error.

    Raises:
        ValueError: Its outer taps along k are not much smaller than those along i and j.
    """
    for name, each in tensors.items():
        if each.ndim != 5 or each.shape[1] != 1 or tuple(each.shape[2:]) != (TALL,) * 3:
            continue
        outer = [_outer(each.float(), axis) for axis in range(3)]
        if outer[2] < UNTRAINED * min(outer[:2]):
            return
        sizes = ", ".join(f"{size:.2g} along {axis}" for axis, size in zip(AXES, outer, strict=True))
        idle = AXES[min(range(3), key=lambda axis: outer[axis])]
        raise ValueError(
            f"{origin}: {name} is said to have learned from pictures of three slices, which never train its outer taps "
            f"along the slices, k; of root mean square these are {sizes}.\n"
            f"Either the file is another one, or its slices lie along {idle}: give it without the name of published "
            "weights, and model.init_args.adapters: [{class_path: KernelAxes, init_args: {axes: ORDER}}]"
        )


def _outer(kernel: Kernel, axis: int) -> float:
    taps = kernel.movedim(2 + axis, 0)
    return float(torch.stack([taps[0], taps[-1]]).square().mean().sqrt())
