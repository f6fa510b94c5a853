"""Transfer: adapt weights that know anatomy to another task."""

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from lightning_atlas.adaptation.base import Adaptation
from lightning_atlas.adaptation.schedules import Schedule
from lightning_atlas.intake.adapters import Adapter
from lightning_atlas.intake.inflation import HeadRule
from lightning_atlas.modules.base import AtlasModule
from lightning_atlas.networks.base import Network
from lightning_atlas.tasks.base import Task


class TransferLearning(AtlasModule):
    """Adapt a network that starts from weights to a task of its own.

    Args:
        network: What is adapted; its last layer is sized from the classes of the data.
        task: What is predicted: loss, inference and metrics.
        optimizer: Takes the parameter groups and returns the optimizer; its learning rate is the peak of the schedule.
        schedule: Learning rate over the run: a share of the peak in closed form, or a scheduler of torch, which counts
            optimizer steps; `null` holds it constant.
        weights: A file or a name of published weights to start from; `null` starts from scratch.
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
        adaptation: What moves, and how fast; several act together. `null` moves everything.
    """

    def __init__(  # noqa: PLR0913 - each is a line of a recipe
        self,
        network: Network,
        task: Task,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | LRSchedulerCallable | None = None,
        weights: str | None = None,
        required_share: float = 0.9,
        contract: Literal["match", "adopt"] = "match",
        allow: list[str] | None = None,
        head: HeadRule = "by_name",
        head_prior: float | dict[str, float] | None = None,
        adapters: list[Adapter] | None = None,
        adaptation: list[Adaptation] | None = None,
    ) -> None:
        super().__init__(
            network, task, optimizer, schedule, weights, required_share, contract, allow, head, head_prior, adapters
        )
        self.adaptation = tuple(adaptation or ())
