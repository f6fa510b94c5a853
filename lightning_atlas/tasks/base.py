"""What every task answers for a module."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_atlas.contract import Contract
from lightning_atlas.networks.base import Network
from lightning_atlas.types import Batch

Split = Literal["val", "test"]
FITTING = {
    "voxels": "Segmentation",
    "class": "Classification",
    "labels": "MultiLabelClassification",
    "values": "Regression",
    "boxes": "Detection",
}
"""What the data give -> the task for it."""


class Task(nn.Module):
    """Says what is learned from a batch and how it is scored; a module says how one learns."""

    predicts = "voxels"
    """What is predicted, in the words of a contract."""

    def adapted(self, network: Network) -> Network:
        """Return the network with which the task is done: the same, or another that holds it."""
        return network

    def agree(self, contract: Contract) -> None:
        """Take from a contract what decoding needs; called before `setup`, and again where a checkpoint says more.

        Raises:
            ValueError: The data are for another task.
        """
        if contract.predicts == self.predicts:
            return
        name, fitting = type(self).__name__, FITTING[contract.predicts]
        if contract.predicts == "boxes" or self.predicts == "voxels":
            argument = "boxes" if contract.predicts == "boxes" else "targets"
            given = "boxes" if contract.predicts == "boxes" else f"the {contract.predicts} of whole scans"
            told = "voxels" if self.predicts == "voxels" else f"the {self.predicts} of whole scans"
            raise ValueError(
                f"the data give {given} (data.init_args.{argument}), but {name} predicts {told}: set "
                f"model.init_args.task.class_path: {fitting}, or data.init_args.{argument}: null"
            )
        given = "labels of voxels" if contract.predicts == "voxels" else f"kind: {contract.predicts}"
        raise ValueError(
            f"{name} predicts the {self.predicts} of whole scans, and the data give {given}: set data.init_args.targets"
            f": {{class_path: Targets, init_args: {{kind: {self.predicts}, names: ..., table: FILE.csv}}}}, "
            f"or model.init_args.task.class_path: {fitting}"
        )

    def outputs(self, classes: Sequence[str]) -> int:
        """Return the number of outputs that the network needs for these classes."""
        raise NotImplementedError

    def setup(self, classes: Sequence[str], mirrored_axes: Sequence[str] = (), overlapping: bool = False) -> None:
        """Make the metrics; called before the first batch, and again where a run is set up again.

        Args:
            classes: Of the data, in order.
            mirrored_axes: Axes (of `i`, `j`, `k`) along which training mirrored.
            overlapping: A voxel may be in several of the classes.

        Raises:
            ValueError: The task is not for such classes.
        """
        raise NotImplementedError

    def answer(self, network: nn.Module, batch: Batch) -> Any:
        """Return what the network says of the images of a training batch."""
        return network(batch["image"])

    def loss(self, logits: Any, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, and its parts without their gradient.

        Args:
            logits: What `answer` returned; of a network with several outputs from the finest down.
            batch: What was to be learned.
        """
        raise NotImplementedError

    def infer(self, network: nn.Module, image: Tensor) -> Tensor:
        """Return what the network says of whole images."""
        raise NotImplementedError

    def decode(self, logits: Tensor) -> Any:
        """Return the prediction that is scored and written."""
        raise NotImplementedError

    def update(self, split: Split, prediction: Any, batch: Batch) -> None:
        """Score a prediction."""
        raise NotImplementedError

    def compute(self, split: Split) -> Any:
        """Return the scores since `reset`, over all ranks."""
        raise NotImplementedError

    def reset(self, split: Split) -> None:
        """Forget the scores."""
        raise NotImplementedError
