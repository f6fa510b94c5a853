"""What moves in a fit, when and how fast: groups, rates, modes, and gradients at rest."""

import math
from collections.abc import Collection, Sequence

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from lightning_atlas.adaptation.base import Adaptation
from lightning_atlas.adaptation.following import FollowingRates, Metrics
from lightning_atlas.adaptation.lora import is_given
from lightning_atlas.adaptation.plan import AdaptationPlan
from lightning_atlas.adaptation.schedules import ConstantSchedule, Schedule
from lightning_atlas.modules.buffers import share_buffers
from lightning_atlas.networks.base import Network
from lightning_atlas.types import Batch, Image


class Adapting(lightning.LightningModule):
    """A module whose stages move by a plan.

    Args:
        network: What is trained.
        optimizer: Takes the parameter groups and returns the optimizer; its learning rate is the peak of the schedule.
        schedule: Learning rate over the run; `None` holds it constant.
    """

    def __init__(
        self, network: Network, optimizer: OptimizerCallable, schedule: Schedule | LRSchedulerCallable | None
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.schedule = schedule or ConstantSchedule()
        self.adaptation: Sequence[Adaptation] = ()
        self.fresh: set[str] = {stage.name for stage in network.stages()}
        """Stages with parameters that no checkpoint gave."""
        self.plan: AdaptationPlan | None = None
        self.anchor: dict[str, Tensor] = {}
        """What the source weights gave to each parameter that moves, where an adaptation needs it."""
        self._resting: set[str] = set()

    def configure_callbacks(self) -> list[Callback]:
        """Return what the adaptations and the schedule do in a fit."""
        if self.trainer.state.fn != "fit":
            return []
        return [*(each for adaptation in self.adaptation for each in adaptation.callbacks()), Metrics()]

    def build(self) -> None:
        """Let the adaptations change the structure, with the same new numbers on all ranks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            for adaptation in self.adaptation:
                adaptation.build(self.network, self.fresh)

    def settle(self, fresh_names: Collection[str] | None = None) -> None:
        """Decide what moves, and keep what is pulled back to; a second time, decide again.

        Args:
            fresh_names: Parameters that the weights did not give; `None` where there are no weights.
        """
        if self.plan is not None:
            self.plan.thaw()
        self.plan = AdaptationPlan(self.adaptation, self.network, self.fresh, self.total_steps)
        self.plan.freeze()
        if self.needs_anchor and fresh_names is not None:
            self.anchor = {
                name: parameter.detach().clone()
                for name, parameter in self.network.named_parameters()
                if parameter.requires_grad and is_given(name, fresh_names)
            }

    def go_on(self, planned: int, step: int) -> None:
        """Compare the length of a run that goes on with the one that it was planned for.

        Args:
            planned: Optimizer steps of the run that was stopped.
            step: At which it was.

        Raises:
            ValueError: Stages that moved would rest again.
        """
        plan = self.settled
        if planned == plan.total_steps:
            return
        former = AdaptationPlan(self.adaptation, self.network, self.fresh, planned)
        if again := sorted(plan.resting(step) - former.resting(step)):
            raise ValueError(
                f"the run was planned for {planned} steps, and is now to have {plan.total_steps}: phases are shares of "
                f"the whole, so that {', '.join(again)} would rest again after step {step}. Give it its former length "
                "(trainer.max_steps, trainer.max_epochs), or start anew with the checkpoint as model.weights"
            )
        self.print(f"planned for {planned} steps, now {plan.total_steps}: rates follow the new length")

    @property
    def needs_anchor(self) -> bool:
        """Whether an adaptation pulls back to the source weights."""
        return any(each.needs_anchor for each in self.adaptation)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run: from `max_steps`, or epochs times the batches of an epoch."""
        trainer = self.trainer
        limits = [trainer.max_steps] if trainer.max_steps > 0 else []
        batches = getattr(getattr(trainer, "datamodule", None), "batches_per_epoch", None)
        if batches is not None and trainer.max_epochs is not None and trainer.max_epochs > 0:
            limit = trainer.limit_train_batches
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
            limits.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
        if not limits:
            raise ValueError("the length of the run is not known: set trainer.max_steps or trainer.max_epochs")
        return min(limits)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make the groups of what moves, from the parameters as they are now (sharding replaces them)."""
        plan = self.settled
        optimizer = self.optimizer(plan.parameter_groups())
        follower = plan.follow(optimizer, self.optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": follower, "interval": "step"}}

    @property
    def settled(self) -> AdaptationPlan:
        """What moves in this fit.

        Raises:
            ValueError: None has begun.
        """
        if self.plan is None:
            raise ValueError("what moves is settled when a fit begins")
        return self.plan

    def train(self, mode: bool = True) -> "Adapting":
        """Set the mode of all but the stages at rest, which stay in evaluation: statistics and dropout rest too."""
        super().train(mode)
        if mode and self.plan is not None and self._trainer is not None:
            self._resting = self.plan.resting(self.trainer.global_step)
            self.plan.set_modes(self.trainer.global_step)
        return self

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let stages rest and wake with their rates; where parameters are sharded, share the buffers."""
        if self.device_mesh is not None:
            share_buffers(self.network)
        if self.settled.resting(self.trainer.global_step) != self._resting:
            self.train()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Silence what is at rest, so that clipping sees what moves; what begins to move forgets former gradients."""
        follower = self._follower()
        for group, leaves in zip(optimizer.param_groups, follower.left_rest, strict=True):
            if group["lr"] == 0:
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)  # None: FSDP2 could not load the optimizer's state
            elif leaves:
                new = self.optimizer([{"params": group["params"]}]).state  # of some, as Adagrad, not empty
                for parameter in group["params"]:
                    optimizer.state[parameter] = new.get(parameter, {})

    def _follower(self) -> FollowingRates:
        scheduler = self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(scheduler, FollowingRates)
        return scheduler

    def penalized(self, losses: dict[str, Tensor], image: Image) -> dict[str, Tensor]:
        """Return the parts of a loss with those that adaptations add; `loss` is their sum."""
        for adaptation in self.adaptation:
            further = adaptation.penalty(self.network, image)
            losses = {**losses, **further, "loss": losses["loss"] + sum(further.values())}
        return losses
