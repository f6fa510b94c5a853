"""What callbacks ask of the module and of the data module."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from jaxtyping import Integer, Shaped
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_atlas.box_metrics import BoxResult
from lightning_atlas.contract import Contract
from lightning_atlas.metrics import DiceResult
from lightning_atlas.networks.base import Network
from lightning_atlas.scan_metrics import ScanResult
from lightning_atlas.types import Batch


@runtime_checkable
class Scored(Protocol):
    """A module that scores what it predicts."""

    network: nn.Module
    task: Any
    contract: Contract
    results: dict[str, DiceResult | ScanResult | BoxResult]
    """The latest scores of `val` and `test`."""


@runtime_checkable
class Course(Protocol):
    """What moves in a fit, and how fast."""

    fresh: set[str]
    """Stages with parameters that no weights gave."""

    def course(self, optimizing: Any, schedule: Any) -> tuple[list[int], dict[str, list[float]]]:
        """Return steps and the learning rate of each stage at these."""
        ...

    def table(self, optimizing: Any, schedule: Any) -> str:
        """Return a line for each stage."""
        ...


@runtime_checkable
class Adapted(Protocol):
    """A module that may begin from weights, and whose stages move at rates of their own."""

    network: Network
    weights: str | None
    intake: Any
    """What became of the weights' tensors, once they were read."""
    optimizer: Any
    schedule: Any
    plan: Course | None
    """What moves; `None` before a fit."""


@runtime_checkable
class Restored(Protocol):
    """A volume on the grid of a file."""

    data: Shaped[Tensor, "1 i j k"]

    def set_data(self, tensor: Shaped[Tensor, "1 i j k"]) -> None:
        """Put other values in the place of those that are there."""
        ...

    def save(self, path: Path) -> None:
        """Write a file."""
        ...


@runtime_checkable
class CaseData(Protocol):
    """A data module whose cases have names."""

    contract: Contract

    def describe(self) -> str:
        """Return one line that says what the scores are measured on."""
        ...

    def subjects(self, split: str) -> Sequence[str]:
        """Return the names of a split's cases, in the order of their index."""
        ...

    def datasets(self, split: str) -> Sequence[str]:
        """Return the dataset of each of a split's cases, in the order of their index."""
        ...

    def whole(self, split: str, n: int) -> Batch:
        """Return a whole case."""
        ...


@runtime_checkable
class VoxelData(CaseData, Protocol):
    """A data module of scans whose voxels are predicted."""

    def ceiling(self, split: str) -> dict[str, float]:
        """Return each class's Dice of the reference itself, sent to the network's grid and back."""
        ...

    def restore(self, rows: Integer[Tensor, "i j k"], subject: str) -> Restored:
        """Return the rows of a prediction on the grid of the subject's file."""
        ...


def scored(module: LightningModule) -> Scored:
    """Return the module as what it must be here."""
    return cast(Scored, module)


def adapted(module: LightningModule) -> Adapted:
    """Return the module as what it must be here."""
    return cast(Adapted, module)


def case_data(trainer: Trainer) -> CaseData:
    """Return the data module as what it must be here."""
    return cast(CaseData, getattr(trainer, "datamodule", None))


def voxel_data(trainer: Trainer) -> VoxelData:
    """Return the data module as what it must be here."""
    return cast(VoxelData, getattr(trainer, "datamodule", None))
