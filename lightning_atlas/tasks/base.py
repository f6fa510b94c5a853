"""What every task answers for a module."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_atlas.types import Batch

Split = Literal["val", "test"]


class Task(nn.Module):
    """Says what is learned from a batch and how it is scored; a module says how one learns."""

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

    def loss(self, logits: Tensor | Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, and its parts without their gradient.

        Args:
            logits: Of the network; of one with several outputs from the finest down.
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
