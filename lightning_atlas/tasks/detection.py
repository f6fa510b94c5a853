"""Boxes around the structures of each class."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_atlas.box_metrics import BoxResult, BoxScores
from lightning_atlas.contract import Contract, side_pairs
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.networks.base import Network
from lightning_atlas.networks.detection.base import Detector
from lightning_atlas.networks.detection.retina import RetinaDetector
from lightning_atlas.tasks.base import Split, Task
from lightning_atlas.tasks.box_windows import BoxWindows
from lightning_atlas.types import Batch, Boxes, Image


class Detection(Task):
    """Finds the boxes of each class; needs `data.boxes` and a network that finds boxes.

    A network that finds none, such as `UNet`, gives its encoder to a `RetinaDetector` with its default settings.

    Args:
        window: Windows in which whole images are searched; `null` shows the network the whole image at once.
        overlap: Intersection over union above which, of two boxes of a class that several windows found, the one with
            the lower score goes.
        most: Boxes that an image has at most, the best. Of each window, or of the whole image, a network says no more
            than the `most` of its own `BoxSelection`, 100 by default: raise that too.
    """

    predicts = "boxes"

    def __init__(self, window: SlidingWindow | None = None, overlap: float = 0.25, most: int = 100) -> None:
        super().__init__()
        if not 0 < overlap <= 1:
            raise ValueError(f"Detection: overlap is a share above 0, at most 1, found {overlap}")
        if most < 1:
            raise ValueError(f"Detection: most is a number of boxes, at least 1, found {most}")
        self.window = window
        self.search = BoxWindows(window, overlap, most)
        self.planar = False
        self.scores = nn.ModuleDict()

    def adapted(self, network: Network) -> Network:
        """Return the network, or a detector that holds its encoder."""
        found = network if isinstance(network, Detector) else RetinaDetector(network)
        self.planar = found.planar
        return found

    def agree(self, contract: Contract) -> None:
        """Check that the data give boxes.

        Raises:
            ValueError: They do not.
        """
        if contract.predicts != self.predicts:
            given = "labels of voxels" if contract.predicts == "voxels" else f"the {contract.predicts} of whole scans"
            raise ValueError(
                f"Detection learns from boxes, and the data give {given}: set data.init_args.boxes, and targets: null; "
                "boxes around what the labels show are {class_path: LabelBoxes}, those of a table "
                "{class_path: SourceBoxes, init_args: {names: [...]}}"
            )

    def outputs(self, classes: Sequence[str]) -> int:
        """Return one for each class."""
        return len(classes)

    def setup(self, classes: Sequence[str], mirrored_axes: Sequence[str] = (), overlapping: bool = False) -> None:
        """Make the metrics; the window learns which axes training mirrored."""
        if self.window is not None:
            self.window.set_mirroring(mirrored_axes, side_pairs(classes))
        self.scores.update({split: BoxScores(len(classes), self.planar) for split in ("val", "test")})

    def answer(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss of a training batch.

        Raises:
            ValueError: The batch has no boxes, or the network not the precision that boxes need.
        """
        check_precision(network)
        if "boxes" not in batch:
            raise ValueError("Detection learns from boxes, and the batch has none: say which in data.init_args.boxes")
        truth = batch["boxes"]
        return cast(Detector, network).losses(network(batch["image"], truth), truth)

    def loss(self, logits: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the parts as `loss`, and the parts, detached.

        Args:
            logits: What `answer` returned.
            batch: What was to be learned.
        """
        total = torch.stack(list(logits.values())).sum()
        return {"loss": total, **{name: part.detach() for name, part in logits.items()}}

    def infer(self, network: nn.Module, image: Image) -> Any:
        """Return the boxes of each image, best first.

        Raises:
            ValueError: The network has not the precision that boxes need.
        """
        check_precision(network)
        return self.search(cast(Detector, network), image)

    def decode(self, logits: Any) -> list[Boxes]:
        """Return the boxes as they are."""
        return logits

    def update(self, split: Split, prediction: list[Boxes], batch: Batch) -> None:
        """Score the boxes of a batch, where its own are known."""
        if "boxes" in batch:
            self._metric(split).update(prediction, batch["boxes"], batch["index"])

    def compute(self, split: Split) -> BoxResult:
        """Return what was found, over all ranks."""
        return self._metric(split).compute()

    def reset(self, split: Split) -> None:
        """Forget the scores."""
        self._metric(split).reset()

    def _metric(self, split: Split) -> BoxScores:
        return cast(BoxScores, self.scores[split])


def check_precision(network: nn.Module) -> None:
    """Refuse weights in another precision than single: in half, corners come so, too, and 301.3 is 302.

    Raises:
        ValueError: Some are.
    """
    if others := {each.dtype for each in network.parameters()} - {torch.float32}:
        found = ", ".join(map(str, others))
        raise ValueError(
            f"Detection needs weights and boxes in single precision, and found {found}: set "
            "trainer.precision: bf16-mixed (or 16-mixed, or 32-true)"
        )
