"""Pre-training of a 3D network on colour pictures, whose three colours are the slices of a small volume."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_atlas.adaptation.schedules import Schedule
from lightning_atlas.contract import Contract
from lightning_atlas.intake.adapters import Adapter
from lightning_atlas.intake.inflation import HeadRule
from lightning_atlas.modules.base import AtlasModule
from lightning_atlas.modules.taps import BECAME, Filling, TrainedTaps, as_table, filled, full, local, strength, told
from lightning_atlas.networks.base import Network, Pyramid
from lightning_atlas.networks.depth import DepthAware
from lightning_atlas.tasks.base import Task
from lightning_atlas.types import Batch

SLICES = 3
"""Red, green and blue."""


class VariableDimensionPretraining(AtlasModule):
    """Train a 3D network on colour pictures, so that scans of any depth can start from the result.

    Three slices are few: planes of a kernel that meet nothing but padding are never trained, such as the two outermost
    of a stem of 7. Their gradients are measured over the run, and the run's report and its checkpoints say which they
    are. By default they stay as they are: training alone then makes the weights, and over a run of the published length
    weight decay shrinks them to nothing (1e-11 of their start in 500,400 steps at a mean rate of 0.05 with a decay of
    1e-4, which a momentum of 0.9 makes ten times as strong). A short run leaves them near their random start, which a
    scan of more slices meets as noise; `zero` is for that. No choice changes what is answered to pictures.

    Source: Zhang et al. 2022, *Advancing 3D Medical Image Analysis with Variable Dimension Transform based Supervised
    3D Pre-training*, arXiv:2201.01426.
    Differs: untrained planes are reported.

    Args:
        network: What is trained; its last layer is sized from the classes of the data.
        task: What is predicted: loss, inference and metrics.
        optimizer: Takes the parameter groups and returns the optimizer; its learning rate is the peak of the schedule.
        schedule: Learning rate over the run: a share of the peak in closed form, or a scheduler of torch, which counts
            optimizer steps; `null` holds it constant.
        weights: A file or a name of published weights to start from; `null` starts from scratch. Read only when a fit
            starts afresh, never when it resumes and never by test or predict.
        required_share: The least share of the encoder's parameters that `weights` must fill.
        contract: What becomes of a preprocessing that is not what the weights expect: `match` stops; `adopt` takes over
            their orientation, spacing, intensity window and range, also where a checkpoint is resumed or scored.
        allow: Keys of the contract in which data and weights are meant to differ, such as `modality`.
        head: What the head's last layer takes of `weights`: `by_name`, the outputs of classes that both have; `fresh`,
            nothing.
        head_prior: Share of the voxels, of each class or one for all, with which outputs that no weights gave start in
            their biases; `null` leaves these as initialised.
        adapters: Rules for tensors of `weights` that the network cannot take as they are: other channels, kernel sizes,
            positions, depths.
        untrained_taps: What becomes of planes of kernels that were never trained, in checkpoints and when the fit ends:
            `keep`; `zero`; or `nearest`, the values of the nearest trained plane. With `weights`, which may bring them
            trained, only `keep`.

    Raises:
        ValueError: The network does not keep three slices, or planes that `weights` bring would be overwritten.
    """

    def __init__(  # noqa: PLR0913 - each is a line of a recipe
        self,
        network: Network,
        task: Task,
        optimizer: OptimizerCallable = torch.optim.SGD,
        schedule: Schedule | LRSchedulerCallable | None = None,
        weights: str | None = None,
        required_share: float = 0.9,
        contract: Literal["match", "adopt"] = "match",
        allow: list[str] | None = None,
        head: HeadRule = "by_name",
        head_prior: float | dict[str, float] | None = None,
        adapters: list[Adapter] | None = None,
        untrained_taps: Filling = "keep",
    ) -> None:
        super().__init__(
            network, task, optimizer, schedule, weights, required_share, contract, allow, head, head_prior, adapters
        )
        check_depth(self.network)
        if weights is not None and untrained_taps != "keep":
            raise ValueError(
                f"untrained_taps: {untrained_taps} would overwrite what {weights} brings for the planes that this run "
                "does not train: set model.init_args.untrained_taps: keep"
            )
        self.untrained_taps: Filling = untrained_taps
        self.taps = TrainedTaps()

    def setup(self, stage: str) -> None:
        """Take the contract of the data, and refuse what are no pictures in a fit."""
        super().setup(stage)
        if stage == "fit" and self.contract is not None:
            check_pictures(self.contract)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Refuse images of another depth; let stages rest and wake with their rates."""
        check_slices(tuple(batch["image"].shape))
        super().on_train_batch_start(batch, batch_idx)

    def on_after_backward(self) -> None:
        """See which planes of the kernels have a gradient, before anything but the loss adds to it."""
        self.taps.look(self.network)

    def on_train_end(self) -> None:
        """Tell which planes were never trained, and give them what was asked for."""
        self._unite()
        found = self.taps.untrained()
        kernels = {each.kernel: self.network.get_parameter(each.kernel) for each in found}
        ratios = {name: strength(full(each), self.taps.seen[name].cpu()) for name, each in kernels.items()}
        with torch.no_grad():
            for name, kernel in kernels.items():
                part = local(kernel)
                part.copy_(filled(part, self.taps.seen[name], self.untrained_taps))
        self.print("\n".join(told(found, ratios, self.untrained_taps)))
        # without a logger a run has no folder of its own; the question goes to all processes
        log_dir = self.trainer.log_dir if self.trainer.loggers else None
        if log_dir is not None and self.trainer.is_global_zero:
            table = {"steps": self.trainer.global_step, "filled": self.untrained_taps}
            path = Path(log_dir, "taps.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**table, "kernels": as_table(found, ratios)}, indent=1), encoding="utf-8")

    def _unite(self) -> None:
        if self.device_mesh is not None:  # each process has the gradients of a part
            self.taps.unite(lambda seen: self.trainer.strategy.reduce(seen.to(self.device), reduce_op="max"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add which planes were trained, and give the others what was asked for."""
        super().on_save_checkpoint(checkpoint)
        self._unite()
        state, found = checkpoint["state_dict"], self.taps.untrained()
        for name in (each.kernel for each in found):
            if f"network.{name}" in state:
                kernel = state[f"network.{name}"]
                state[f"network.{name}"] = filled(kernel, self.taps.seen[name].to(kernel.device), self.untrained_taps)
        became = BECAME[self.untrained_taps] if self.weights is None else "as its weights brought them"
        trained = "never trained" if self.weights is None else "not trained by this run"
        notes = [f"{each.kernel}: {trained}, {became}: {each}" for each in found]
        checkpoint["lightning_atlas"] |= {"taps": self.taps.state_dict(), "notes": notes}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what `on_save_checkpoint` added."""
        super().on_load_checkpoint(checkpoint)
        self.taps.load_state_dict(checkpoint["lightning_atlas"].get("taps", {}))


def check_depth(network: nn.Module) -> None:
    """Refuse an encoder that does not keep three slices up to its end.

    Raises:
        ValueError: It strides or pools along k.
    """
    for each in network.modules():
        if not isinstance(each, Pyramid):
            continue
        if isinstance(each, DepthAware):
            left = each.level_depths(SLICES)
            remedy = "set its depth_policy: {strides: preserve}, without pools"
        else:
            left = [-(-SLICES // along) for *_, along in each.reductions()]
            remedy = "take R3D or P3D, which can keep every slice"
        if min(left) < SLICES:
            raise ValueError(
                f"{type(each).__name__} leaves {', '.join(map(str, left))} of a picture's three slices at its levels, "
                f"so that kernels along k would learn little; {remedy}; a target may have another one, with the same "
                "weights"
            )


def check_pictures(contract: Contract) -> None:
    """Refuse data that are no pictures as they lie on disk.

    Raises:
        ValueError: They have several channels, or stand in another orientation, or in one that nobody states.
    """
    if len(contract.channels) != 1:
        raise ValueError(
            f"VariableDimensionPretraining reads one channel, whose slices are the colours; the data have "
            f"{len(contract.channels)} ({', '.join(contract.channels)}): let the data make slices of them "
            "(ColoursToSlices)"
        )
    if contract.orientation is None:
        raise ValueError(
            "VariableDimensionPretraining writes into its weights how pictures lie, and the data do not say: take "
            "PictureDataModule, or put {class_path: torchio.ToOrientation, init_args: {orientation: LPS}} first "
            "in data.init_args.preprocess"
        )
    if contract.orientation != "LPS":
        raise ValueError(
            f"VariableDimensionPretraining reads pictures, whose columns and rows are L and P (LPS), and the data are "
            f"{contract.orientation}: take PictureDataModule, and no transform that reorients; scans are for "
            "SupervisedPretraining"
        )


def check_slices(shape: tuple[int, ...]) -> None:
    """Refuse a batch whose images are not three slices of one channel.

    Raises:
        ValueError: The axes are other ones.
    """
    if (shape[1], shape[-1]) != (1, SLICES):
        raise ValueError(
            f"VariableDimensionPretraining reads one channel of three slices, and the batch has {shape[1]} of "
            f"{shape[-1]}: let the data make slices of the colours (ColoursToSlices)"
        )
