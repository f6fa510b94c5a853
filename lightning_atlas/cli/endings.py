"""How a run ends when it does not end well: in a few lines that say what to do."""

import shutil
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_atlas.callbacks import memory_advice
from lightning_atlas.cli.recipes import INTERRUPTED, TERMINATED, CommandError
from lightning_atlas.cli.run_folder import last_checkpoint

PACKAGE = Path(__file__).parents[1]
DRIVER = Path("/proc/driver/nvidia")
NO_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
"""Words of torch's host allocator on Linux and on Windows, and of cuDNN and cuBLAS."""


@contextmanager
def plain_words(trainer: Trainer, folder: Path | None) -> Iterator[None]:
    """Turn an interrupt or a termination, exhausted memory and our own refusals into a `CommandError`.

    Bugs keep their traceback.

    Args:
        trainer: Of the run inside.
        folder: Of the run, where its last checkpoint would be.

    Raises:
        CommandError: The run ended early, in a way that has plain words.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException as end:  # a SystemExit without a code, which would count as success
        raise CommandError(f"stopped by SIGTERM; {_left_behind(folder)}", exit_code=TERMINATED) from end
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning ignores further interrupts, saves what it must and leaves by SystemExit.
        if not isinstance(end, KeyboardInterrupt) and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        if getattr(rank_zero_only, "rank", 0):
            raise SystemExit(INTERRUPTED) from end
        raise CommandError(f"stopped by Ctrl-C; {_left_behind(folder)}", exit_code=INTERRUPTED) from end
    except Exception as error:
        if is_out_of_memory(error):
            raise CommandError("\n".join(memory_advice(error, trainer)), exit_code=1) from error
        if not is_refusal(error):
            raise
        raise CommandError(str(error)) from error


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that a device or the host has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def is_refusal(error: Exception) -> bool:
    """Tell whether an error is about what was asked for, not about the program."""
    if isinstance(error, FileNotFoundError | MisconfigurationException):
        return True
    if isinstance(error, RuntimeError):
        return str(error).startswith("Error(s) in loading state_dict")
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError | OSError) and PACKAGE in Path(frames[-1].filename).parents


def unused_gpu() -> str | None:
    """Return a line on an NVIDIA driver that this build of torch cannot use, with the remedy."""
    driver = shutil.which("nvidia-smi") or DRIVER.exists()
    if torch.version.cuda or torch.version.hip or not driver:
        return None
    return (
        f"note: this machine has an NVIDIA driver, but torch {torch.__version__} is a CPU build; for the GPU run "
        "`pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130`"
    )


def _left_behind(folder: Path | None) -> str:
    try:
        return f"last checkpoint: {last_checkpoint(folder)}" if folder else "this run writes no checkpoint"
    except CommandError:
        return "no checkpoint was written yet"
