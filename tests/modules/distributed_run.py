"""Train a few steps alone, under DDP or FSDP2, and write losses and weights (started by the test beside it)."""

import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from lightning_atlas.adaptation import HeadsFirst, LayerWiseDecay
from lightning_atlas.cli.command import leave
from lightning_atlas.cli.runner import leave_processes
from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import TransferLearning
from lightning_atlas.networks import UNet
from lightning_atlas.tasks import Segmentation

STEPS, GLOBAL_BATCH = 4, 4
CLASSES = ("liver", "spleen", "kidney")


def case(number: int) -> dict:
    """Return case `number`: dense, drawn on two planes only, or with one class that nobody drew."""
    generator = torch.Generator().manual_seed(number)
    label = torch.randint(1, 5, (16, 16, 16), generator=generator, dtype=torch.int16)
    states = torch.tensor([[-1, -1, -1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.int8)
    drawn = states >= 0
    if number % 3 == 1:
        label[..., 3:9] = 0
        label[..., 10:] = 0
    if number % 3 == 2:
        states[1, 2], drawn[:, 2] = -1, False
        label[label == 4] = 1
    outside, inside = (states == 0).all(1), (states == 1).any(1)
    background = outside.to(torch.int8) - (~inside & ~outside).to(torch.int8)
    tables = {"states": states, "drawn": drawn, "background": background}
    image = torch.randn(1, 16, 16, 16, generator=generator)
    return {"image": image, "label": label, **tables, "index": torch.tensor(number)}


def collate(cases: list[dict]) -> dict:
    """Stack cases into a batch."""
    batch = {key: torch.stack([each[key] for each in cases]) for key in cases[0]}
    extra = {"spacing_mm": torch.ones(len(cases), 3), "affine": torch.eye(4).repeat(len(cases), 1, 1)}
    return {**batch, **extra, "subject": [str(int(n)) for n in batch["index"]]}


class FixedData(lightning.LightningDataModule):
    """The same global batches whatever the number of processes."""

    contract = Contract(classes=CLASSES)
    batches_per_epoch = STEPS

    def train_dataloader(self):
        """Return this rank's share of each global batch."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        share = GLOBAL_BATCH // world
        numbers = [s * GLOBAL_BATCH + rank * share + n for s in range(STEPS) for n in range(share)]
        return DataLoader(cast(Dataset, [case(n) for n in numbers]), batch_size=share, collate_fn=collate)


class Losses(lightning.Callback):
    """Keep each step's loss, averaged over the ranks."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx):
        """Add one."""
        self.values.append(float(trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")))


class StopAfterFirstEpoch(lightning.Callback):
    """Save and stop while the body still rests."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        """Do both."""
        trainer.save_checkpoint(self.path)
        trainer.should_stop = True


def main(strategy: str, optimizer: str, output: Path) -> None:
    """Run, in one go or (`fsdp-resumed`) in two halves, and let rank zero write."""
    torch.set_num_threads(1)
    kind, _, resumed = strategy.partition("-")
    half = output.with_suffix(".ckpt")
    losses = Losses()
    if resumed:
        fit(kind, optimizer, [losses, StopAfterFirstEpoch(half)])
    run, module = fit(kind, optimizer, [losses], half if resumed else None)
    whole = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in module.network.state_dict().items()
    }
    if run.is_global_zero:
        torch.save({"losses": losses.values, "weights": whole}, output)
    leave_processes()
    leave(0)


def fit(strategy: str, optimizer: str, callbacks: list, checkpoint: Path | None = None) -> tuple[Any, Any]:
    """Train two epochs, in the first of which only the head moves."""
    lightning.seed_everything(7)
    make = {
        "adamw": partial(torch.optim.AdamW, lr=1e-2),
        "sgd": partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
    }[optimizer]
    module = TransferLearning(
        UNet(features=(4, 8)),
        Segmentation(SlidingWindow(patch=(16, 16, 16))),
        optimizer=make,
        adaptation=[HeadsFirst(0.5), LayerWiseDecay(0.5)],
    )
    module.fresh = {"head"}
    run = trainer(strategy, *callbacks)
    run.fit(module, datamodule=FixedData(), ckpt_path=checkpoint)
    return run, module


def trainer(strategy: str, *callbacks: lightning.Callback, epochs: int = 2) -> lightning.Trainer:
    """Return a quiet trainer of one process (`alone`) or two (`ddp`, `fsdp`)."""
    strategies = {
        "alone": "auto",
        "ddp": "ddp",
        "fsdp": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False),
    }
    return lightning.Trainer(
        accelerator="cpu",
        devices=1 if strategy == "alone" else 2,
        strategy=strategies[strategy],
        max_epochs=epochs,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
