"""What tasks have in common that say of every voxel in which classes it is."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_atlas.contract import side_pairs
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.losses import Losses
from lightning_atlas.metrics import CaseDice, DiceResult
from lightning_atlas.pyramid import coarser
from lightning_atlas.tasks.base import Split, Task
from lightning_atlas.types import Batch, Image, Label, Logits, Prediction

Outputs = Sequence[Float[Tensor, "batch outputs _ _ _"]]
"""Logits from the finest grid to the coarsest."""
Probabilities = Float[Tensor, "batch classes i j k"]
"""Of each class in each voxel, without the background's."""


class DiceTask(Task):
    """Scores predictions of voxels where their classes were drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.ModuleDict()

    def score(self, classes: int) -> None:
        """Make a `CaseDice` for validation and one for the test.

        Args:
            classes: Of the data.
        """
        self.scores.update({split: CaseDice(classes) for split in ("val", "test")})

    def update(self, split: Split, prediction: Prediction, batch: Batch) -> None:
        """Score a prediction where its classes were drawn."""
        label = batch["label"]
        here = Prediction(*(each.to(label.device) for each in prediction))
        voxel_ml = batch["spacing_mm"].prod(1) / 1000
        self._metric(split).update(here, label, batch["states"], batch["drawn"], batch["index"], voxel_ml)

    def compute(self, split: Split) -> DiceResult:
        """Return Dice and volumes of each case and class, over all ranks."""
        return self._metric(split).compute()

    def reset(self, split: Split) -> None:
        """Forget the scores."""
        self._metric(split).reset()

    def _metric(self, split: Split) -> CaseDice:
        return cast(CaseDice, self.scores[split])


class VoxelTask(DiceTask):
    """Says of every voxel in which classes it is; a subclass has the terms of the loss and the decoding.

    Args:
        window: How whole volumes are predicted.
        weights: Term of the loss -> its weight.
        deep_supervision: Weights of a network's outputs from the finest down; `None` halves them from one to the next.
    """

    overlapping = False
    """Whether a voxel may be in several classes."""
    misfit = ""
    """What to change where the classes of the data are of the other kind."""

    def __init__(
        self, window: SlidingWindow, weights: Mapping[str, float], deep_supervision: list[float] | None = None
    ) -> None:
        super().__init__()
        for name, given in [*weights.items(), *(("deep_supervision", each) for each in deep_supervision or ())]:
            if given < 0:
                raise ValueError(f"{type(self).__name__}: {name} weighs a part of the loss; found {given} below 0")
        if not any(weights.values()) or (deep_supervision is not None and not any(deep_supervision)):
            empty = "deep_supervision" if any(weights.values()) else ", ".join(weights)
            raise ValueError(f"{type(self).__name__}: nothing is left of the loss: give {empty} a weight above 0")
        self.window = window
        self.weights = dict(weights)
        self.deep_supervision = deep_supervision

    def outputs(self, classes: Sequence[str]) -> int:
        """Return one for each class, and one for the background where classes exclude each other."""
        return len(classes) + (not self.overlapping)

    def setup(self, classes: Sequence[str], mirrored_axes: Sequence[str] = (), overlapping: bool = False) -> None:
        """Make a `CaseDice` for validation and one for the test; the window learns which axes training mirrored.

        Raises:
            ValueError: The classes overlap and the task's exclude each other, or the other way round.
        """
        if overlapping != self.overlapping:
            raise ValueError(self.misfit)
        first = self.outputs(())  # behind the background, if there is one
        self.window.set_mirroring(mirrored_axes, [(first + one, first + other) for one, other in side_pairs(classes)])
        self.score(len(classes))

    def terms(self, logits: Logits, label: Label, batch: Batch) -> Losses:
        """Return the terms of the loss of one output of the network, each a value per case.

        Args:
            logits: At any resolution.
            label: At the same resolution.
            batch: Has the tables.
        """
        raise NotImplementedError

    def probabilities(self, logits: Logits) -> Probabilities:
        """Return the probability of each class in each voxel, without the background's."""
        raise NotImplementedError

    def loss(self, logits: Logits | Outputs, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted sum as `loss`, and its terms under their names, detached.

        Args:
            logits: Of the network; of one with several outputs from the finest down.
            batch: What was to be learned.

        Raises:
            ValueError: The network has other outputs than the tables or `deep_supervision` need.
        """
        outputs = [logits] if isinstance(logits, Tensor) else list(logits)
        self._check_outputs(outputs[0].shape[1], batch["states"].shape[2])
        parts: dict[str, Tensor] = {}
        for share, output in zip(self._shares(len(outputs)), outputs, strict=True):
            terms = self.terms(output, label_at(output, batch), batch)
            for name in (name for name, weight in self.weights.items() if weight):
                # A share of 0 too: a parameter without any gradient would stop a run on several devices.
                part = share * terms[name].mean()
                parts[name] = parts[name] + part if name in parts else part
        loss = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    def infer(self, network: nn.Module, image: Image) -> Logits:
        """Return the logits of whole images."""
        return self.window(network, image)

    def _check_outputs(self, found: int, classes: int) -> None:
        if found != (expected := classes + (not self.overlapping)):
            background = "" if self.overlapping else "the background and "
            raise ValueError(
                f"the network has {found} outputs, expected {expected}: {background}the {classes} classes of the data"
            )

    def _shares(self, count: int) -> list[float]:
        weights = self.deep_supervision or [0.5**number for number in range(count)]
        if len(weights) != count:
            raise ValueError(
                f"deep_supervision has {len(weights)} weights, but the network returns {count} "
                f"{'output' if count == 1 else 'outputs'}; give it {count}, or null: each half of the finer one's"
            )
        return [weight / sum(weights) for weight in weights]


def label_at(logits: Logits, batch: Batch) -> Label:
    """Return the label at the resolution of an output.

    Raises:
        ValueError: The output's grid is no whole part of the label's.
    """
    label = batch["label"]
    fine, coarse = label.shape[1:], logits.shape[2:]
    if fine == coarse:
        return label
    i, j, k = (-(-whole // part) for whole, part in zip(fine, coarse, strict=True))
    found = coarser(label, batch["states"], batch["drawn"], batch["background"], (i, j, k))
    if found.shape[1:] != coarse:
        sides, whole = ("x".join(map(str, each)) for each in (coarse, fine))
        raise ValueError(f"an output of the network has {sides} voxels, which is no whole part of the patch's {whole}")
    return found


def smallest_integer(most: int) -> torch.dtype:
    """Return the smallest kind of integer that holds 0 to `most`."""
    return torch.uint8 if most < 2**8 else torch.int16 if most < 2**15 else torch.int32
