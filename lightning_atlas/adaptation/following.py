"""Any scheduler of torch for groups whose rates stand in a ratio of their own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

CYCLED = ("momentum", "betas")
"""What some schedulers change besides the rate."""


class FollowingRates(LRScheduler):
    """Gives each group the rate of a stand-in with a single group, times the group's own multiplier.

    The schedule runs on the stand-in, so the ratio of the groups is that of their multipliers at every step, whatever
    the schedule computes from the rates that it finds.

    Args:
        optimizer: Of the network.
        make_optimizer: Makes one of the same kind for the stand-in's parameter.
        make_schedule: Makes the schedule of an optimizer.
        multiplier: Group, step -> share of the stand-in's rate, in closed form.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        make_optimizer: Callable[..., Optimizer],
        make_schedule: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau],
        multiplier: Callable[[dict[str, Any], int], float],
    ) -> None:
        self.stand_in = StandIn(make_optimizer, make_schedule)
        self.multiplier = multiplier
        self.rates: list[float] = []
        self.left_rest: list[bool] = []
        """For each group, whether its rate is above 0 at this step and was 0 at the one before."""
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of each group at the step that comes next."""
        rate = self.stand_in.rate if self.last_epoch == 0 else self.stand_in.advance()
        rates = [rate * self.multiplier(group, self.last_epoch) for group in self.optimizer.param_groups]
        self.left_rest = [old == 0 < new for old, new in zip(self.rates or rates, rates, strict=True)]
        self.rates = rates
        for group in self.optimizer.param_groups:
            group.update({key: value for key, value in self.stand_in.group.items() if key in CYCLED})
        return [*self.rates]

    def see(self, metrics: Mapping[str, Any]) -> None:
        """Tell a schedule that waits for a metric what the last validation found."""
        self.stand_in.see(metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the rates, and where the stand-in is."""
        own = {"last_epoch": self.last_epoch, "rates": self.rates, "left_rest": self.left_rest}
        return own | {"_last_lr": self._last_lr, "stand_in": self.stand_in.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        given = dict(state_dict)
        self.stand_in.load_state_dict(given.pop("stand_in"))
        self.__dict__.update(given)


class Metrics(Callback):
    """Tells a schedule that waits for a metric, before checkpoints are written: modules hear of a validation later."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell it."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            for each in trainer.lr_scheduler_configs:
                if isinstance(each.scheduler, FollowingRates):
                    each.scheduler.see(trainer.callback_metrics)


class StandIn:
    """One parameter with an optimizer and a schedule, whose rate others follow.

    Args:
        make_optimizer: Makes the optimizer of a list of parameter groups.
        make_schedule: Makes its schedule.
    """

    def __init__(
        self,
        make_optimizer: Callable[..., Optimizer],
        make_schedule: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau],
    ) -> None:
        self.optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}])
        self.schedule = make_schedule(self.optimizer)

    @property
    def group(self) -> dict[str, Any]:
        """The optimizer's only group."""
        return self.optimizer.param_groups[0]

    @property
    def rate(self) -> float:
        """The learning rate now."""
        return float(self.group["lr"])

    def advance(self) -> float:
        """Return the rate of the next step; one that waits for a metric keeps its own."""
        if not isinstance(self.schedule, ReduceLROnPlateau):
            self.optimizer.step()  # it has no gradient; schedulers warn where none was taken
            self.schedule.step()
        return self.rate

    def see(self, metrics: Mapping[str, Any]) -> None:
        """Tell a schedule that waits for a metric what it is now.

        Raises:
            ValueError: It does not say for which, or there is none of that name.
        """
        if not isinstance(self.schedule, ReduceLROnPlateau):
            return
        monitor = str(getattr(self.schedule, "monitor", ""))
        if monitor not in metrics:
            there = ", ".join(sorted(metrics)) or "none"
            raise ValueError(
                f"the schedule waits for {monitor or 'a metric without a name'}, and there are {there}: "
                "take lightning.pytorch.cli.ReduceLROnPlateau and set monitor"
            )
        self.schedule.step(float(metrics[monitor]))

    def state_dict(self) -> dict[str, Any]:
        """Return where the schedule is."""
        kept = {key: value for key, value in self.group.items() if key != "params"}
        return {"group": kept, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.group.update(state_dict["group"])
        self.schedule.load_state_dict(state_dict["schedule"])
