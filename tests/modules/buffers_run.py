"""Train and validate a network with batch norm on two processes, and write how far their statistics lie apart."""

import sys
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from distributed_run import FixedData, case, collate, trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_atlas.cli.command import leave
from lightning_atlas.cli.runner import leave_processes
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import TransferLearning
from lightning_atlas.networks import as_network
from lightning_atlas.tasks import Segmentation


class Data(FixedData):
    """With a volume for each process to validate and to test on."""

    def val_dataloader(self):
        """Return this rank's."""
        assert self.trainer is not None
        return DataLoader(cast(Dataset, [case(self.trainer.global_rank)]), batch_size=1, collate_fn=collate)

    test_dataloader = val_dataloader


class Apart(lightning.Callback):
    """Keeps the largest difference between the processes' buffers, whenever something is scored."""

    def __init__(self):
        self.trained: list[float] = []
        self.scored: list[float] = []

    def on_train_batch_end(self, trainer, pl_module: Any, outputs, batch, batch_idx):
        """Look after a step, which changes them."""
        self.trained.append(apart(trainer, pl_module))

    def on_validation_batch_start(self, trainer, pl_module: Any, batch, batch_idx, dataloader_idx=0):
        """Look before a volume is validated."""
        self.scored.append(apart(trainer, pl_module))

    on_test_batch_start = on_validation_batch_start


def apart(trainer: Any, module: Any) -> float:
    """Return the largest difference."""
    flat = torch.cat([each.float().flatten() for each in module.network.buffers()])
    return float((flat - trainer.strategy.broadcast(flat)).abs().max())


def main(strategy: str, output: Path) -> None:
    """Fit, validate and test; each process writes what it found."""
    torch.set_num_threads(1)
    lightning.seed_everything(7)
    body = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU())
    whole = nn.Sequential(body, nn.Conv3d(4, 2, 1))
    network: Any = as_network(whole, encoder=["0"], decoder=[], head=["1"])
    module = TransferLearning(network, Segmentation(SlidingWindow(patch=(16, 16, 16))))
    look = Apart()
    run = trainer(strategy, look)
    run.fit(module, datamodule=Data())
    run.test(module, datamodule=Data(), verbose=False)
    torch.save({"trained": look.trained, "scored": look.scored}, f"{output}.{run.global_rank}")
    leave_processes()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
