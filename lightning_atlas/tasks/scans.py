"""What tasks have in common that say something of a whole scan."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Shaped
from monai.data.utils import dense_patch_slices
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.networks.base import Network
from lightning_atlas.networks.pooled import PooledEncoder, Pooling
from lightning_atlas.scan_metrics import CaseTargets, Kind, ScanResult
from lightning_atlas.tasks.base import Split, Task
from lightning_atlas.types import Batch, Image, ScanPrediction

ScanLogits = Float[Tensor, "batch outputs"]
Padded = Float[Tensor, "batch channels padded_i padded_j padded_k"]


class ScanTask(Task):
    """Says something of a whole scan from the pooled features of an encoder; a subclass has the loss and the decoding.

    Args:
        window: Windows over whose logits is averaged; `None` shows the network the whole scan at once.
        pooling: As in `PooledEncoder`.
        dropout: As in `PooledEncoder`.
    """

    predicts: Kind = "class"
    least_outputs = 1
    """Fewer names than this leave nothing to tell apart."""

    def __init__(self, window: SlidingWindow | None, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        self.window = window
        self.pooling: Pooling = pooling
        self.dropout = dropout
        self.scores = nn.ModuleDict()

    def adapted(self, network: Network) -> Network:
        """Return the network's encoder with a linear layer behind it."""
        if isinstance(network, PooledEncoder):
            return network
        return PooledEncoder(network, pooling=self.pooling, dropout=self.dropout)

    def outputs(self, classes: Sequence[str]) -> int:
        """Return one for each class, label or value."""
        return len(classes)

    def setup(self, classes: Sequence[str], mirrored_axes: Sequence[str] = (), overlapping: bool = False) -> None:
        """Make the metrics; the window learns which axes training mirrored.

        Raises:
            ValueError: There are too few classes.
        """
        if len(classes) < self.least_outputs:
            raise ValueError(
                f"{type(self).__name__} needs {self.least_outputs} names at least, found {len(classes)}: write them in "
                "data.init_args.targets.init_args.names"
            )
        if self.window is not None:
            self.window.set_mirroring(mirrored_axes)
        self.scores.update({split: CaseTargets(self.predicts, len(classes)) for split in ("val", "test")})

    def case_losses(self, logits: ScanLogits, target: Shaped[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """Return the loss of each case; 0 where nothing is known of it."""
        raise NotImplementedError

    def loss(self, logits: Tensor | Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the mean over the cases as `loss`.

        Raises:
            ValueError: The batch says nothing of whole scans.
        """
        if not isinstance(logits, Tensor) or "target" not in batch:
            raise ValueError(
                f"{type(self).__name__} learns from targets of whole scans, and the batch has none: say which they are "
                "in data.init_args.targets"
            )
        return {"loss": self.case_losses(logits, batch["target"]).mean()}

    def infer(self, network: nn.Module, image: Image) -> ScanLogits:
        """Return the logits of whole images, in float32."""
        if self.window is None:
            least = getattr(network, "size_offset", 0)
            return network(padded(image, getattr(network, "size_multiple", 1), least)).float()
        return mean_over_windows(network, image, self.window)

    def update(self, split: Split, prediction: ScanPrediction, batch: Batch) -> None:
        """Keep a prediction with what is known."""
        if "target" in batch:
            target = batch["target"]
            cast(CaseTargets, self.scores[split]).update(prediction.values.to(target.device), target, batch["index"])

    def compute(self, split: Split) -> ScanResult:
        """Return what was found, over all ranks."""
        return cast(CaseTargets, self.scores[split]).compute()

    def reset(self, split: Split) -> None:
        """Forget the scores."""
        cast(CaseTargets, self.scores[split]).reset()


def padded(image: Image, multiple: int | Sequence[int], least: int = 0) -> Padded:
    """Return an image whose sides are `least` and multiples of a number, padded behind by each case's minimum."""
    steps = [multiple] * 3 if isinstance(multiple, int) else list(multiple)
    sides = zip(image.shape[2:], steps, strict=True)
    rest = [least - side if side < least else (least - side) % step for side, step in sides]
    return _filled(image, [0, 0, 0], rest) if any(rest) else image


def mean_over_windows(network: nn.Module, image: Image, window: SlidingWindow) -> ScanLogits:
    """Return the mean of the logits of all windows, and of these mirrored where the window says so.

    Args:
        network: Returns logits for each image of a batch.
        image: Padded around with its least value where a side is shorter than the window.
        window: Sides, overlap and windows at once.
    """
    rest = [max(0, side - own) for side, own in zip(window.patch, image.shape[2:], strict=True)]
    image = _filled(image, [each // 2 for each in rest], [each - each // 2 for each in rest]) if any(rest) else image
    sides = list(image.shape[2:])
    steps = [max(1, int(side * (1 - window.overlap))) for side in window.patch]
    places = dense_patch_slices(sides, list(window.patch), steps)
    total = torch.zeros(())
    for start in range(0, len(places), window.batch_size):
        some = [image[:, :, *place].float() for place in places[start : start + window.batch_size]]
        together = torch.cat(some)
        for axes in ((), *window.reversals):
            flipped = together.flip([2 + axis for axis in axes]) if axes else together
            total = total.to(image.device) + network(flipped).float().unflatten(0, (len(some), -1)).sum(0)
    return total / (len(places) * (1 + len(window.reversals)))


def _filled(image: Image, before: Sequence[int], behind: Sequence[int]) -> Padded:
    rim = [each for pair in zip(reversed(before), reversed(behind), strict=True) for each in pair]
    least = [float(case.min()) for case in image]
    return torch.stack([F.pad(case, rim, value=low) for case, low in zip(image, least, strict=True)])
