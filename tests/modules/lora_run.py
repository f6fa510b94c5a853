"""Train by LoRA alone, under DDP or FSDP2, whole or resumed (started by the test beside it)."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from distributed_run import FixedData, Losses
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_atlas.adaptation import LoRA
from lightning_atlas.cli.command import leave
from lightning_atlas.cli.runner import leave_processes
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import TransferLearning
from lightning_atlas.networks import UNet
from lightning_atlas.tasks import Segmentation


class Halfway(lightning.Callback):
    """Save after the first epoch."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        """Save."""
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def trainer(strategy: str, *callbacks: lightning.Callback) -> lightning.Trainer:
    """Return a quiet trainer."""
    shard = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return lightning.Trainer(
        accelerator="cpu",
        devices=1 if strategy == "alone" else 2,
        strategy={"alone": "auto", "ddp": "ddp", "fsdp": shard}[strategy],
        max_epochs=2,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def module(weights: Path) -> Any:
    """Return what is trained."""
    lightning.seed_everything(7)
    task = Segmentation(SlidingWindow(patch=(16, 16, 16)))
    make = partial(torch.optim.SGD, lr=1e-1, momentum=0.9)
    return TransferLearning(UNet(features=(4, 8)), task, make, weights=str(weights), adaptation=[LoRA(rank=2)])


def main(strategy: str, folder: Path) -> None:
    """Fit whole, then from the middle; save both ends."""
    torch.set_num_threads(1)
    losses, half = Losses(), folder / f"{strategy}_half.ckpt"
    for end, callbacks, start in (("whole", [losses, Halfway(half)], None), ("rest", [], half)):
        fit = trainer(strategy, *callbacks)
        fit.fit(module(folder / "source.pt"), datamodule=FixedData(), ckpt_path=start)
        fit.save_checkpoint(folder / f"{strategy}_{end}.ckpt")
    if fit.is_global_zero:
        torch.save(losses.values, folder / f"{strategy}.pt")
    leave_processes()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
