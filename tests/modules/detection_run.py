"""Learn to find boxes alone, under DDP or FSDP2, where images without any are among them (started by the test)."""

import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from lightning_atlas.cli.command import leave
from lightning_atlas.cli.runner import leave_processes
from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import TransferLearning
from lightning_atlas.networks import Detector, RetinaDetector, SliceDetector, UNet
from lightning_atlas.networks.detection.box_losses import AnchorLoss
from lightning_atlas.tasks import Detection
from lightning_atlas.types import Boxes

BOXES = ((1, 0), (0, 2), (0, 0), (2, 1))
"""Of each step the numbers of boxes in the image of the first and of the second process."""


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return what several processes hold parts of; all of them ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def scene(number: int, boxes: int) -> dict[str, Any]:
    """Return an image with some bright boxes."""
    generator = torch.Generator().manual_seed(number)
    image = torch.randn(1, 16, 16, 16, generator=generator)
    low = torch.randint(0, 10, (boxes, 3), generator=generator)
    corners = torch.cat([low, low + 5], 1)
    for i, j, k in low.tolist():
        image[:, i : i + 5, j : j + 5, k : k + 5] += 2
    return {"image": image, "boxes": Boxes(corners.float(), torch.arange(boxes) % 2), "index": number}


def collate(scenes: list[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch."""
    return {
        "image": torch.stack([each["image"] for each in scenes]),
        "boxes": [each["boxes"] for each in scenes],
        "index": torch.tensor([each["index"] for each in scenes]),
        "subject": [str(each["index"]) for each in scenes],
    }


class Scenes(lightning.LightningDataModule):
    """The same global batches whatever the number of processes."""

    contract = Contract(classes=("cyst", "stone"), predicts="boxes")
    batches_per_epoch = len(BOXES)

    def train_dataloader(self):
        """Return this process's image of each step; all of them, where it is alone."""
        found = [scene(2 * step + n, boxes[n]) for step, boxes in enumerate(BOXES) for n in self._own()]
        return self._loader(found, len(self._own()))

    def val_dataloader(self):
        """Return the two images of one step; in one of them more windows are searched."""
        found = [scene(n, boxes) for n, boxes in enumerate(BOXES[-1])]
        found[1]["image"] = torch.cat([found[1]["image"]] * 3, 1)
        return self._loader([found[n] for n in self._own()], 1)

    def predict_dataloader(self):
        """Return two images for the first process, and one for the second."""
        return self._loader([scene(n + more, 1) for n in self._own() for more in ((0, 2) if n == 0 else (0,))], 1)

    def _own(self) -> tuple[int, ...]:
        assert self.trainer is not None
        return (0, 1) if self.trainer.world_size == 1 else (self.trainer.global_rank,)

    def _loader(self, scenes: list[dict[str, Any]], batch_size: int) -> DataLoader:
        return DataLoader(cast(Dataset, scenes), batch_size=batch_size, collate_fn=collate)


class Watch(lightning.Callback):
    """Keep each step's loss, averaged over the processes, and the largest entry of each gradient."""

    def __init__(self):
        self.losses, self.gradients = [], []

    def on_after_backward(self, trainer, pl_module: Any):
        """Look at every parameter; one without a gradient fails here."""
        named = pl_module.network.named_parameters()
        self.gradients.append({name: float(whole(each.grad).abs().max()) for name, each in named})

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx):
        """Add a loss."""
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")))


def detector(kind: str) -> Detector:
    """Return a small one."""
    backbone = UNet(features=(4, 8, 8))
    if kind == "slices":
        return SliceDetector(backbone, slices=16, levels=(-3, -2, -1), features=16, collapse="mean")
    loss = AnchorLoss(least_negatives=10_000)  # asks all anchors and draws none, so that processes agree with one alone
    return RetinaDetector(backbone, features=16, loss=loss)


def main(kind: str, strategy: str, folder: Path) -> None:
    """Fit and write."""
    torch.set_num_threads(1)
    lightning.seed_everything(7)
    module = TransferLearning(
        detector(kind), Detection(SlidingWindow((16, 16, 16), batch_size=1)), partial(torch.optim.SGD, lr=1e-2)
    )
    watch = Watch()
    strategies = {
        "alone": "auto",
        "ddp": "ddp",
        "fsdp": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False),
    }
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1 if strategy == "alone" else 2,
        strategy=strategies[strategy],
        max_epochs=2,
        use_distributed_sampler=False,
        num_sanity_val_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(module, datamodule=Scenes())
    seen = {
        "losses": watch.losses,
        "gradients": watch.gradients,
        "weights": {name: whole(each).detach() for name, each in module.network.named_parameters()},
        "scores": module.results["val"].scores(Scenes.contract.classes),
    }
    said = trainer.predict(module, datamodule=Scenes())
    seen["predicted"] = len(said or [])
    torch.save(seen, folder / f"{kind}-{strategy}{trainer.global_rank}.pt")
    leave_processes()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
