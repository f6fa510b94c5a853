"""A two-class toy problem on random patches."""

from typing import Any, cast

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_atlas.contract import Contract

CLASSES = ("liver", "spleen")


def batch(number: int, cases: int = 2) -> Any:
    """Return batch `number`: bright voxels are liver, dark ones spleen."""
    generator = torch.Generator().manual_seed(number)
    image = torch.randn(cases, 1, 16, 16, 16, generator=generator)
    label = 1 + (image[:, 0] > 1).to(torch.int16) + 2 * (image[:, 0] < -1).to(torch.int16)
    states = torch.tensor([[-1, -1], [0, 0], [1, 0], [0, 1]], dtype=torch.int8).repeat(cases, 1, 1)
    return {
        "image": image,
        "label": label,
        "states": states,
        "drawn": states >= 0,
        "background": torch.tensor([-1, 1, 0, 0], dtype=torch.int8).repeat(cases, 1),
        "index": torch.arange(cases),
        "spacing_mm": torch.ones(cases, 3),
        "affine": torch.eye(4).repeat(cases, 1, 1),
        "subject": [f"{number}-{n}" for n in range(cases)],
    }


class ToyData(lightning.LightningDataModule):
    """Four batches an epoch, one volume to validate."""

    batches_per_epoch = 4

    def __init__(self, contract: Contract | None = None):
        super().__init__()
        self.contract = contract or Contract(classes=CLASSES)

    def train_dataloader(self):
        """Return the batches, already collated."""
        return DataLoader(cast(Dataset, [batch(n) for n in range(4)]), batch_size=None)

    def val_dataloader(self):
        """Return one volume."""
        return DataLoader(cast(Dataset, [batch(9, cases=1)]), batch_size=None)

    test_dataloader = val_dataloader


@pytest.fixture
def toy_data():
    """Give the class, to be made with or without a contract."""
    return ToyData


@pytest.fixture
def toy_batch():
    """Give the function that makes batch number n."""
    return batch
