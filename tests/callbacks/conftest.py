"""A tiny module and data module with the names that callbacks ask for."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_atlas.contract import Contract
from lightning_atlas.metrics import CaseDice, DiceResult
from lightning_atlas.types import Batch, Prediction

CLASSES = ("liver", "spleen")
STATES = torch.tensor([[-1, -1], [0, 0], [1, 0], [0, 1]], dtype=torch.int8)
INSIDE = torch.tensor([[0, 0], [1, 0], [0, 1]], dtype=torch.bool)


class Cases(Dataset):
    """Noise, in which each case is labelled in blocks."""

    def __init__(self, cases: int, size: tuple[int, ...]) -> None:
        self.cases, self.size = cases, size

    def __len__(self) -> int:
        return self.cases

    def __getitem__(self, index: int) -> Any:
        image = torch.randn(1, *self.size, generator=torch.Generator().manual_seed(index))
        label = torch.ones(self.size, dtype=torch.uint8)
        label[1:4, 1:4, 1:4] = 2
        label[4:7, 4:7, 2:5] = 3
        return image, label, index


def collate(items: list[Any]) -> Batch:
    images, labels, index = zip(*items, strict=True)
    cases = len(items)
    return Batch(
        image=torch.stack(images),
        label=torch.stack(labels),
        states=STATES.expand(cases, -1, -1),
        drawn=(STATES >= 0).expand(cases, -1, -1),
        background=torch.tensor([-1, 1] + [0] * (len(STATES) - 2), dtype=torch.int8).expand(cases, -1),
        spacing_mm=torch.tensor([[2.0, 2.0, 5.0]]).expand(cases, -1),
        affine=torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0])).expand(cases, -1, -1),
        index=torch.tensor(index),
        subject=[f"case {each}" for each in index],
        seed=torch.tensor(index),
    )


class Restored:
    def __init__(self, rows: Tensor) -> None:
        self.data = rows[None]

    def set_data(self, tensor: Tensor) -> None:
        self.data = tensor

    def save(self, path: Any) -> None:
        torch.save(self.data[0], path)


class ToyData(LightningDataModule):
    def __init__(self, cases: int = 4, size: tuple[int, ...] = (8, 8, 8), names: list[str] | None = None) -> None:
        super().__init__()
        self.patches = SimpleNamespace(size=size)
        self.batch_size = 2
        self.contract = Contract(classes=CLASSES)
        self.names = names or [f"case {index}" for index in range(cases)]
        self.hospitals = 1
        self.data = Cases(len(self.names), size)

    def describe(self) -> str:
        return "simulated cohort of noise"

    def subjects(self, split: str) -> list[str]:
        return self.names

    def datasets(self, split: str) -> list[str]:
        return [f"hospital {number % self.hospitals}" for number in range(len(self.names))]

    def whole(self, split: str, n: int) -> Batch:
        return collate([self.data[n]])

    def ceiling(self, split: str) -> dict[str, float]:
        return {"liver": 0.9, "spleen": float("nan")}

    def restore(self, rows: Tensor, subject: str) -> Restored:
        return Restored(rows)

    def loader(self, batch_size: int = 1) -> DataLoader:
        # A loader without a generator of its own draws from the global one.
        return DataLoader(self.data, batch_size=batch_size, collate_fn=collate, generator=torch.Generator())

    def train_dataloader(self) -> DataLoader:
        return self.loader(2)

    def val_dataloader(self) -> DataLoader:
        return self.loader()

    test_dataloader = predict_dataloader = val_dataloader


class ToyTask(nn.Module):
    window = SimpleNamespace(patch=(8, 8, 8), batch_size=4)

    def loss(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(logits.float(), (batch["label"].long() - 1).clamp(min=0))}


class ToyModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        convolution, head = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 3, 1)
        self.network = nn.Sequential(convolution, nn.BatchNorm3d(4), nn.Dropout(0.5), head)
        self.task = ToyTask()
        self.metric = CaseDice(len(CLASSES))
        self.contract = Contract(classes=CLASSES)
        self.results: dict[str, DiceResult] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.task.loss(self.network(batch["image"]), batch)["loss"]
        self.log("train/loss", loss)
        return loss

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        rows = self.network(batch["image"]).argmax(1)
        return Prediction(rows, INSIDE.expand(len(rows), -1, -1))

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Prediction]:
        prediction = self.predict_step(batch, batch_idx)
        volume = batch["spacing_mm"].prod(1) / 1000
        self.metric.update(prediction, batch["label"], batch["states"], batch["drawn"], batch["index"], volume)
        return {"prediction": prediction}

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.score("val")

    def on_test_epoch_end(self) -> None:
        self.score("test")

    def score(self, split: str) -> None:
        self.results[split] = self.metric.compute()
        self.metric.reset()
        self.log(f"{split}/dice", self.results[split].mean)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@pytest.fixture
def module() -> ToyModule:
    torch.manual_seed(0)
    return ToyModule()


@pytest.fixture
def data() -> ToyData:
    return ToyData()


@pytest.fixture
def make_data() -> Callable[..., ToyData]:
    return ToyData


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    def make(*callbacks: Callback, **options: Any) -> Trainer:
        settings = {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False, "num_sanity_val_steps": 0}
        quiet = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": bool(callbacks)}
        return Trainer(callbacks=list(callbacks), **{**settings, **quiet, **options})

    return make
