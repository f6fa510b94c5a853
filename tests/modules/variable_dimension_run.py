"""Pre-train a few steps alone or sharded over two processes, and write what was trained (started by the test)."""

import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, Dataset

from lightning_atlas.cli.command import leave
from lightning_atlas.cli.runner import leave_processes
from lightning_atlas.contract import Contract
from lightning_atlas.modules import VariableDimensionPretraining
from lightning_atlas.networks import R3D
from lightning_atlas.tasks import Classification

STEPS = 3


class Pictures(lightning.LightningDataModule):
    """Three global batches of four pictures, shared by the processes."""

    contract = Contract(classes=("bird", "cat"), orientation="LPS", predicts="class")
    batches_per_epoch = STEPS

    def train_dataloader(self):
        """Return this rank's share of each."""
        assert self.trainer is not None
        rank, share = self.trainer.global_rank, 4 // self.trainer.world_size
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(STEPS, 4, 1, 16, 16, 3, generator=generator)[:, rank * share : (rank + 1) * share]
        own = {"subject": ["one"] * share, "target": torch.arange(share) % 2}
        return DataLoader(cast(Dataset, [{"image": image, **own} for image in images]), batch_size=None)


def main(strategy: str, folder: Path) -> None:
    """Fit and save."""
    torch.set_num_threads(1)
    lightning.seed_everything(7)
    network = R3D(features=4, norm="group", strides=(2, 1, 1, 2, 1, 1))
    optimizer = partial(torch.optim.SGD, lr=1e-2)
    module = VariableDimensionPretraining(network, Classification(), optimizer, untrained_taps="zero")
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    quiet: Any = {"enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2 if strategy == "fsdp" else 1,
        strategy=sharded if strategy == "fsdp" else "auto",
        max_epochs=1,
        use_distributed_sampler=False,
        enable_model_summary=False,
        logger=CSVLogger(folder / strategy, name="", version=""),
        **quiet,
    )
    trainer.fit(module, datamodule=Pictures())
    trainer.save_checkpoint(folder / f"{strategy}.ckpt")
    leave_processes()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
