"""What does an adaptation cost in each step, beside plain AdamW over all parameters?

    python tests/benchmarks/bench_overhead.py [--steps 40] [--side 48]

Fits of the starter weights on the same patches take turns, and each is repeated; the table has the median time of a
step and its ratio to the plain one's. `hooks` is the time inside what adapting adds to a step (rates, modes, gradients
at rest, L2-SP's pull, the average), measured by itself, since two noisy cores do not resolve a hundredth of a step.
DELTA has a second forward pass in each step, and is left out.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from lightning_atlas.adaptation import (
    EMA,
    L2SP,
    AutoRGN,
    FrozenEncoder,
    FullFineTuning,
    HeadsFirst,
    LayerWiseDecay,
    LoRA,
    NormOnly,
)
from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.intake import read_weights
from lightning_atlas.modules import TransferLearning
from lightning_atlas.networks import UNet
from lightning_atlas.tasks import Segmentation

WAYS: dict[str, Callable[[], list[Any]]] = {
    "plain AdamW": list,
    "full": lambda: [FullFineTuning()],
    "heads first, layer-wise decay": lambda: [HeadsFirst(), LayerWiseDecay()],
    "the same, L2-SP and EMA": lambda: [HeadsFirst(), LayerWiseDecay(), L2SP(), EMA()],
    "Auto-RGN": lambda: [AutoRGN()],
    "frozen encoder": lambda: [FrozenEncoder()],
    "norms": lambda: [NormOnly()],
    "LoRA": lambda: [LoRA()],
}
CLASSES = ("liver", "spleen", "pancreas")
WEIGHTS = "starter_abdomen_ct"
REPEATS = 3


class Data(lightning.LightningDataModule):
    """The same patch again and again.

    Args:
        side: Of the patch, in voxels.
        steps: In an epoch.
    """

    def __init__(self, side: int, steps: int) -> None:
        super().__init__()
        self.contract = replace(read_weights(WEIGHTS).contract or Contract(), classes=CLASSES)
        self.batches_per_epoch = steps
        states = torch.cat([torch.full((1, 3), -1), torch.zeros(1, 3), torch.eye(3)])[None].to(torch.int8)
        self.batch = {
            "image": torch.randn(1, 1, side, side, side),
            "label": torch.randint(1, 5, (1, side, side, side), dtype=torch.int16),
            "states": states,
            "drawn": states >= 0,
            "background": torch.tensor([[-1, 1, 0, 0, 0]], dtype=torch.int8),
            "index": torch.zeros(1, dtype=torch.long),
            "spacing_mm": torch.ones(1, 3),
            "affine": torch.eye(4)[None],
            "subject": ["one"],
        }

    def train_dataloader(self) -> Any:
        """Return it so many times."""
        return DataLoader([self.batch] * self.batches_per_epoch, batch_size=None)  # pyright: ignore[reportArgumentType]


class Clock(lightning.Callback):
    """Time from one step to the next."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._last = 0.0

    def on_train_batch_end(self, *words: Any, **named: Any) -> None:
        """Take one."""
        now = time.perf_counter()
        if self._last:
            self.times.append(now - self._last)
        self._last = now


def timed(module: Any) -> list[float]:
    """Have the hooks of a module and of its adaptations time themselves; return the list that they add to."""
    spent: list[float] = []

    def timing(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*words: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*words, **named)
            finally:
                spent.append(time.perf_counter() - start)

        return run

    configure_callbacks = module.configure_callbacks

    def callbacks() -> list[lightning.Callback]:
        found = configure_callbacks()
        for each in found:
            for name in ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end"):
                setattr(each, name, timing(getattr(each, name)))
        return found

    module.configure_callbacks = callbacks
    module.on_train_batch_start = timing(module.on_train_batch_start)
    module.on_before_optimizer_step = timing(module.on_before_optimizer_step)
    module.lr_scheduler_step = timing(module.lr_scheduler_step)
    return spent


def fit(way: str, side: int, steps: int) -> tuple[list[float], float]:
    """Return the times of the steps, and the time in hooks per step."""
    lightning.seed_everything(0, verbose=False)
    network, task = UNet(features=(16, 32, 64, 96)), Segmentation(SlidingWindow(patch=(side, side, side)))
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    module = TransferLearning(network, task, optimizer, weights=WEIGHTS, adaptation=WAYS[way]())
    spent = timed(module)
    clock = Clock()
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, enable_checkpointing=False, callbacks=[clock], **quiet
    )
    trainer.fit(module, datamodule=Data(side, steps))
    assert bool(module.anchor) is module.needs_anchor
    return clock.times, sum(spent) / steps


def run_all() -> None:
    """Read the command and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--side", type=int, default=48)
    chosen = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in WAYS}
    for _ in range(REPEATS):
        for way, (times, hooks) in found.items():
            steps, inside = fit(way, chosen.side, chosen.steps)
            times += steps
            hooks.append(inside)
    plain = statistics.median(found["plain AdamW"][0])
    print(f"\n{'way':<32}{'ms per step':>12}{'ratio':>8}{'hooks, ms':>12}{'of a plain step':>17}")
    for way, (times, hooks) in found.items():
        step, inside = statistics.median(times), statistics.median(hooks)
        print(f"{way:<32}{step * 1e3:>12.1f}{step / plain:>8.2f}{inside * 1e3:>12.2f}{inside / plain:>17.2%}")


if __name__ == "__main__":
    run_all()
