"""The smallest parts that a recipe can name, for tests of the command line alone."""

import os
import signal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Toy(nn.Module):
    def __init__(self, width: int = 4, depth: int = 1):
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width} and must be 1 or more")
        self.layer = nn.Linear(2, 1)


class WideToy(Toy):
    def __init__(self, width: int = 8, factor: float = 1.0):
        super().__init__(width)
        self.factor = factor


class Blur:
    def __init__(self, sigma: float = 1.0, axes: tuple[int, ...] = (0,)):
        self.sigma = sigma


class ToyModule(LightningModule):
    def __init__(self, network: Toy, optimizer: OptimizerCallable, rate: float = 0.1, note: str | None = None):
        super().__init__()
        self.save_hyperparameters()
        self.network, self.optimizer, self.rate = network, optimizer, rate

    def training_step(self, batch, index):
        return self.network.layer(batch[0]).pow(2).mean()

    def validation_step(self, batch, index):
        self.log("val/loss", self.network.layer(batch[0]).mean())

    def test_step(self, batch, index):
        self.log("test/loss", self.network.layer(batch[0]).mean())

    def on_test_epoch_end(self):
        print(f"rate {self.rate} bias {self.network.layer.bias.item():.9f}")

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class ToyData(LightningDataModule):
    def __init__(self, size: int = 4, augment: list[Blur] | None = None, classes: dict[str, list[str]] | None = None):
        super().__init__()
        self.size = size

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(self.size, 2)), batch_size=2)

    val_dataloader = test_dataloader = train_dataloader


ERRORS = {
    "interrupt": KeyboardInterrupt(),
    "host memory": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    "device memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "bug": ValueError("something unforeseen"),
    "missing file": FileNotFoundError("there is no file scan_017.nii.gz"),
}


class Fail(Callback):
    """Raise an error when an epoch starts.

    Args:
        kind: What to raise: a name in `ERRORS`.
        epoch: In which epoch.
    """

    def __init__(self, kind: str, epoch: int = 1):
        self.kind, self.epoch = kind, epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise ERRORS[self.kind]


class Terminate(Callback):
    """Have the process asked to end, as a cluster does, once training has begun."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
