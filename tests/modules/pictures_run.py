"""Pre-train on drawn pictures, alone or on two processes; each writes what it saw and learned (started by the test)."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from torchio.transforms import RandomFlip

from lightning_atlas.cli.command import leave
from lightning_atlas.cli.runner import leave_processes
from lightning_atlas.data import DrawnPictures, PictureDataModule, RandomColoursToSlices, RandomResizedCrop
from lightning_atlas.modules import VariableDimensionPretraining
from lightning_atlas.networks import R3D
from lightning_atlas.tasks import Classification


class Seen(lightning.Callback):
    """Keep each batch of this process."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch: Any, batch_idx):
        """Add one."""
        self.batches.append({"epoch": trainer.current_epoch, **{key: batch[key] for key in ("subject", "image")}})


def main(strategy: str, folder: Path) -> None:
    """Fit and write."""
    torch.set_num_threads(1)
    lightning.seed_everything(7)
    network = R3D(features=4, norm="group", strides=(2, 1, 1, 2, 1, 1))
    module = VariableDimensionPretraining(network, Classification(), partial(torch.optim.SGD, lr=1e-2))
    augment = [RandomResizedCrop((16, 16)), RandomFlip(axes=(0,)), RandomColoursToSlices()]
    data = PictureDataModule(DrawnPictures(10, 0, 0, (24, 20)), augment=augment, batch_size=4, seed=3)
    seen = Seen()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1 if strategy == "alone" else 2,
        strategy="auto" if strategy == "alone" else strategy,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[seen],
    )
    trainer.fit(module, datamodule=data)
    weights = {name: weight.detach() for name, weight in module.network.named_parameters()}
    torch.save({"seen": seen.batches, "weights": weights}, folder / f"{strategy}{trainer.global_rank}.pt")
    leave_processes()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
