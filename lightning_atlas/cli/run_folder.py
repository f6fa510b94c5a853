"""The folder in which a run ends, and what a command reads back from one."""

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning_atlas.cli.recipes import CommandError

FOLDER_VARIABLE = "LIGHTNING_ATLAS_RUN_FOLDER"
"""Tells the processes that Lightning starts for further devices which folder the first one has made."""
TIME = "%Y-%m-%d_%H-%M-%S"
TRAINING_DATA = "training_data.json"
"""In a run's folder: what it was trained on, in numbers and without names of subjects."""
PACKAGES = ("lightning-atlas", "torch", "lightning", "monai", "torchio", "torchmetrics", "jsonargparse", "numpy")


def is_run(folder: Path) -> bool:
    """Tell whether a folder is one in which a `fit` ended."""
    return (folder / "recipe.yaml").is_file()


def make_run_folder(root: Path, name: str) -> Path:
    """Make and return `root/runs/name/time`; two runs of the same second get two folders."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given)
    parent, start = root / "runs" / name, datetime.now().strftime(TIME)
    if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0):
        return parent / start  # started by torchrun or srun: the first process makes the folder and tells it
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"no run folder in {parent} ({error}): choose another --trainer.default_root_dir") from error
    for number in range(1, 1000):
        folder = parent / (start if number == 1 else f"{start}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        os.environ[FOLDER_VARIABLE] = str(folder)
        return folder
    raise CommandError(f"{parent} has a thousand runs of this second")


def forget_run_folder() -> None:
    """Let the next run of this process make a folder of its own, and remove one in which nothing was written."""
    if (given := os.environ.pop(FOLDER_VARIABLE, None)) and "LOCAL_RANK" not in os.environ:
        with suppress(OSError):
            Path(given).rmdir()


def made_in(run: Path) -> Path | None:
    """Return the folder in which the run's command was typed, where its recipe's own classes lie."""
    notes = run / "environment.txt"
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
    return next((Path(line.removeprefix("folder: ")) for line in lines if line.startswith("folder: ")), None)


def last_checkpoint(run: Path) -> Path:
    """Return `checkpoints/last.ckpt` of a run, or else its newest checkpoint.

    Raises:
        CommandError: The folder has no checkpoint.
    """
    checkpoints = run / "checkpoints"
    if (last := checkpoints / "last.ckpt").is_file():
        return last
    found = sorted(checkpoints.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CommandError(f"{run} has no checkpoint: there is no file {checkpoints / '*.ckpt'}; did its fit end?")
    return found[-1]


def stated_contract(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint's weights expect of an image; nothing if it does not say."""
    import torch

    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return content.get("lightning_atlas", {}).get("contract") or {}


def environment(command: str) -> str:
    """Return what a run was made with: command, versions and machine, a line each.

    Args:
        command: What was typed.
    """
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    lines = {
        "command": command,
        "folder": str(Path.cwd()),
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cpu count": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "torch device": f"{device} (CUDA of the build: {torch.version.cuda})",
        **{package: _version(package) for package in PACKAGES},
    }
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def describe_run(run: Path) -> str:
    """Return what `inspect RUN` prints: checkpoint, progress, contract, origin of the weights, last scores."""
    import torch

    path = last_checkpoint(run)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    tensors = checkpoint["state_dict"]
    numbers = sum(tensor.numel() for tensor in tensors.values())
    lines = [
        f"checkpoint: {path} ({path.stat().st_size / 1e6:.1f} MB)",
        f"trained: {checkpoint['global_step']} steps, {checkpoint['epoch'] + 1} epochs",
        f"weights: {len(tensors)} tensors, {numbers:,} numbers",
        *_stated(checkpoint.get("lightning_atlas", {})),
    ]
    scores = run / "scores.csv"
    if scores.is_file():
        rows = scores.read_text(encoding="utf-8").splitlines()
        lines += [f"scores: {scores}", *(f"  {row}" for row in [*rows[:1], *rows[1:][-12:]])]
    return "\n".join(lines)


def _stated(values: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in values.items():
        if key == "taps":  # tensors; what they say stands in the notes
            continue
        if key == "notes":
            lines += [f"note: {each}" for each in value]
        elif isinstance(value, Mapping):
            lines += [f"{key}:", *(f"  {name}: {each}" for name, each in value.items() if each not in (None, []))]
        else:
            lines.append(f"{key}: {value}")
    return lines


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
