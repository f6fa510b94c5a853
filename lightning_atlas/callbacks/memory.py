"""How much memory a run holds, what is free, and which lines of the recipe would fit."""

import math
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer

if sys.platform != "win32":
    import resource

WINDOW = "model.init_args.task.init_args.window.init_args"
UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def in_words(size: int | float) -> str:
    """Return bytes as people read them, in powers of ten."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.995 * factor:
            return f"{size / factor:.{1 if size >= 9.95 * factor or unit == 'kB' else 2}f} {unit}"
    return f"{size:.0f} bytes"


def held_bytes(device: torch.device) -> int | None:
    """Return what the process holds now: on the GPU, or resident in memory; `None` where that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        return int(statistics.read_text(encoding="utf-8").split()[1]) * resource.getpagesize()
    return peak_bytes(device)


def peak_bytes(device: torch.device) -> int | None:
    """Return the most the process has held so far (on a GPU since its record was last reset)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes(device: torch.device) -> int | None:
    """Return what any process could still take; `None` where that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+)", table.read_text(encoding="utf-8")) if table.exists() else None
    return int(found[1]) * 1024 if found else None


def asked_bytes(error: BaseException) -> int | None:
    """Return the size of the request that failed, read from the message of torch or NumPy."""
    found = re.search(r"(?:allocate|to allocate)\s+([\d.]+)\s*(bytes|[KMGT]iB|B)\b", str(error))
    return round(float(found[1]) * UNITS[found[2]]) if found else None


def memory_advice(error: BaseException, trainer: Trainer) -> list[str]:
    """Return at most five lines: what was asked, what is free, and the lines of the recipe that would fit.

    Args:
        error: What was raised.
        trainer: The trainer whose run it ended.
    """
    device = trainer.strategy.root_device
    asked, free = (_known(size) for size in (asked_bytes(error), free_bytes(device)))
    lines = [f"out of memory on {device}: asked {asked}, free {free}"]
    window = _task_window(trainer) if evaluating(error) else None
    if window is not None and device.type != "cpu" and not getattr(window, "on_host", True):
        return [
            *lines,
            "the logits of a whole image are gathered on the device; this line of the recipe gathers them on the host:",
            f"--{WINDOW}.on_host true",
        ]
    place = _window(window) if evaluating(error) else _patches(trainer)
    if place is None:
        return lines
    half = place.batch * math.prod(place.size) / 2
    cost, budget = None if evaluating(error) else _cost(trainer), _budget(trainer, device)
    if cost and budget:
        each = in_words(cost * math.prod(place.size))
        reason = f"a patch of {_sides(place.size)} takes {each}, counted at the start"
        half = min(half, budget / cost)
    else:
        reason = f"half of the {place.batch} x {_sides(place.size)} voxels that were tried"
    network = getattr(trainer.lightning_module, "network", None)
    multiple, least = getattr(network, "size_multiple", 1), getattr(network, "size_offset", 0)
    batch, size = shrink(place.batch, place.size, half, multiple, least)
    if (batch, size) == (place.batch, tuple(place.size)):
        return [*lines, "the recipe already takes the least that the network can; take a smaller network"]
    return [
        *lines,
        f"these lines of the recipe should fit ({reason}):",
        f"--{place.batch_key} {batch * place.processes}",
        f"--{place.size_key} [{', '.join(map(str, size))}]",
    ]


def evaluating(error: BaseException) -> bool:
    """Tell whether whole volumes were being predicted: by now the trainer has forgotten what it was at."""
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    return not names.isdisjoint({"validation_step", "test_step", "predict_step"})


def shrink(
    batch: int, size: Sequence[int], voxels: int | float, multiple: int | Sequence[int], least: int = 0
) -> tuple[int, tuple[int, ...]]:
    """Return the largest batch of that size with so few voxels; failing that, one patch, its longest sides shortened.

    Args:
        batch: Patches now.
        size: Sides of a patch now.
        voxels: The most voxels a batch may have.
        multiple: Each side that is shortened becomes a multiple of this: one number, or one for each side.
        least: Where it is not 0, a side becomes this, or a multiple more.
    """
    sides = list(size)
    steps = [multiple] * len(sides) if isinstance(multiple, int) else multiple
    batch = max(1, min(batch, int(voxels // math.prod(sides))))
    while math.prod(sides) * batch > voxels:
        longer = [axis for axis, side in enumerate(sides) if side > (least or steps[axis])]
        if not longer:
            break
        longest = max(longer, key=sides.__getitem__)
        step, more = steps[longest], sides[longest] - 1 - least
        sides[longest] = max(least or step, least + more // step * step)
    return batch, tuple(sides)


class Place(NamedTuple):
    """Where the recipe says how much is computed at once, and what it says for one process."""

    batch_key: str
    batch: int
    size_key: str
    size: tuple[int, ...]
    processes: int = 1


def _patches(trainer: Trainer) -> Place | None:
    data = getattr(trainer, "datamodule", None)
    size, batch = getattr(getattr(data, "patches", None), "size", None), getattr(data, "batch_size", None)
    if size is None or batch is None:
        return None
    keys = "data.init_args.batch_size", "data.init_args.patches.init_args.size"
    return Place(keys[0], max(1, batch // trainer.world_size), keys[1], tuple(size), trainer.world_size)


def _task_window(trainer: Trainer) -> Any:
    return getattr(getattr(trainer.lightning_module, "task", None), "window", None)


def _window(window: Any) -> Place | None:
    if window is None:
        return None
    return Place(f"{WINDOW}.batch_size", window.batch_size, f"{WINDOW}.patch", tuple(window.patch))


def _known(size: int | None) -> str:
    return "unknown" if size is None else in_words(size)


def _sides(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _cost(trainer: Trainer) -> float | None:
    counted = (getattr(each, "bytes_per_voxel", None) for each in getattr(trainer, "callbacks", ()))
    return next((each for each in counted if each), None)


def _budget(trainer: Trainer, device: torch.device) -> float | None:
    """Return the bytes that activations may take: what is free, and what this process gives back, less a tenth."""
    free = free_bytes(device)
    if free is None:
        return None
    if device.type == "cuda":
        lent = torch.cuda.memory_reserved(device)
        fixed = sum(tensor.nbytes for tensor in trainer.lightning_module.parameters()) * 4  # gradients, two moments
        return 0.9 * (free + lent) - fixed
    return 0.9 * free
