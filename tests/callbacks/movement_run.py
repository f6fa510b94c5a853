"""Fine-tune a few steps on two processes and write what moved, and the weights (started by the test beside it)."""

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import cast

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from lightning_atlas.adaptation import LayerWiseDecay
from lightning_atlas.callbacks import Movement
from lightning_atlas.cli.command import leave
from lightning_atlas.cli.runner import leave_processes
from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import TransferLearning
from lightning_atlas.networks import UNet
from lightning_atlas.tasks import Segmentation


class Patches(lightning.LightningDataModule):
    """Noise, another on each process."""

    contract = Contract(classes=("liver",))
    batches_per_epoch = 3

    def train_dataloader(self):
        """Return three batches."""
        assert self.trainer is not None
        generator = torch.Generator().manual_seed(self.trainer.global_rank)
        states = torch.tensor([[-1], [0], [1]], dtype=torch.int8)[None]
        batches = []
        for _ in range(3):
            image = torch.randn(1, 1, 8, 8, 8, generator=generator)
            label = 1 + (image[:, 0] > 1).to(torch.int16)
            tables = {
                "states": states,
                "drawn": states >= 0,
                "background": torch.tensor([[-1, 1, 0]], dtype=torch.int8),
            }
            batches.append({"image": image, "label": label, **tables, "index": torch.tensor([0]), "subject": ["a"]})
        return DataLoader(cast(Dataset, batches), batch_size=None)


def main(strategy: str, weights: str, output: Path) -> None:
    """Run, and let rank zero write."""
    torch.set_num_threads(1)
    lightning.seed_everything(7)
    module = TransferLearning(
        UNet(features=(4, 6)),
        Segmentation(SlidingWindow(patch=(8, 8, 8))),
        partial(torch.optim.AdamW, lr=1e-2),
        weights=weights,
        adaptation=[LayerWiseDecay(0.5)],
    )
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    movement = Movement(voxels=300)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy=sharded if strategy == "fsdp" else "ddp", max_epochs=1, logger=False,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[movement], default_root_dir=output.parent,
    )  # fmt: skip
    trainer.fit(module, datamodule=Patches())
    whole = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in module.network.state_dict().items()
    }
    if trainer.is_global_zero:
        torch.save({"stages": [asdict(each) for each in movement.result], "weights": whole}, output)
    leave_processes()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
