"""Train under L2-SP, DELTA, EMA and Auto-RGN alone or sharded, whole or resumed (started by the test beside it)."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from distributed_run import FixedData, trainer
from torch.distributed.tensor import DTensor

from lightning_atlas.adaptation import DELTA, EMA, L2SP, AutoRGN
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


def module(weights: Path | None) -> Any:
    """Return what is trained."""
    lightning.seed_everything(7)
    adaptation = [L2SP(alpha=0.1), DELTA(attention_batches=2), EMA(0.5), AutoRGN(batches=2)] if weights else None
    task = Segmentation(SlidingWindow(patch=(16, 16, 16)))
    make = partial(torch.optim.SGD, lr=1e-1, momentum=0.9)
    file = str(weights) if weights else None
    return TransferLearning(UNet(features=(4, 8)), task, make, weights=file, adaptation=adaptation)


def main(strategy: str, folder: Path) -> None:
    """Run the whole, and its second half again; let rank zero write."""
    torch.set_num_threads(1)
    weights, half = folder / "source.ckpt", folder / f"{strategy}.ckpt"
    if strategy == "alone":
        source, first = module(None), trainer("alone", epochs=1)
        first.fit(source, datamodule=FixedData())
        first.save_checkpoint(weights)
    whole, rest = module(weights), module(weights)
    fit = trainer(strategy, Halfway(half))
    fit.fit(whole, datamodule=FixedData())
    trainer(strategy).fit(rest, datamodule=FixedData(), ckpt_path=half)
    states = [
        {
            name: each.full_tensor() if isinstance(each, DTensor) else each
            for name, each in run.network.state_dict().items()
        }
        for run in (whole, rest)
    ]
    if fit.is_global_zero:
        torch.save({"whole": states[0], "rest": states[1]}, folder / f"{strategy}.pt")
    leave_processes()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
