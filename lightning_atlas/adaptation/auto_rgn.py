"""Auto-RGN: each tensor's learning rate by how large its gradient is beside it."""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_atlas.adaptation.base import Adaptation
from lightning_atlas.adaptation.catalogue import norm_parameters, stage_norms
from lightning_atlas.adaptation.shards import whole
from lightning_atlas.networks.base import Network, Stage, stage_parameters


class AutoRGN(Adaptation):
    """Give each tensor a share of the rate: its relative gradient norm, divided by the largest.

    |gradient| / |weights| is averaged over the first batches of each epoch; the shares hold from then on. A resumed run
    has them from its checkpoint. Normalisation layers of the source stand still, running statistics included, and are
    not measured.

    Source: Lee et al. 2023, *Surgical Fine-Tuning Improves Adaptation to Distribution Shifts*, and its code: 5 batches,
    normalisation left out.
    Differs: those batches are trained on too, in the first epoch at the full rate; the optimizer keeps its state;
    stages that no checkpoint gave have the full rate and are not measured: their gradients tell nothing of the source;
    batch norm of the source normalises by its running statistics, where the code goes by the batch and they follow.

    Args:
        batches: Optimizer steps of each epoch that are measured.
    """

    per_tensor: ClassVar[bool] = True

    def __init__(self, batches: int = 5) -> None:
        if batches < 1:
            raise ValueError(f"batches of AutoRGN is {batches}; it must be 1 or more")
        self.batches = batches
        self.factors: dict[str, float] = {}

    def holds(self, network: Network, fresh: Collection[str]) -> set[str]:
        """Return the normalisation layers' parameters, but those of fresh stages."""
        given = [stage for stage in network.stages() if stage.name not in fresh]
        return {name for stage in given for name in norm_parameters(network, stage)}

    def set_modes(self, network: Network, fresh: Collection[str]) -> None:
        """Put these layers in evaluation mode."""
        for stage in network.stages():
            if stage.name not in fresh:
                for norm in stage_norms(network, stage):
                    norm.eval()

    def factor(self, name: str) -> float:
        """Return a tensor's share; 1 where it was not measured."""
        return self.factors.get(name, 1.0)

    def callbacks(self) -> list[Callback]:
        """Return what measures."""
        return [Measuring(self)]

    def cautions(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[str]:
        """Say where there is nothing to measure."""
        if all(stage.name in fresh for stage in stages):
            return ["AutoRGN measures what source weights gave, and there are none: everything has the full rate"]
        return []


class Measuring(Callback):
    """Measures in the first batches of each epoch, and sets the shares.

    Args:
        adaptation: Gets the shares.
    """

    def __init__(self, adaptation: AutoRGN) -> None:
        self.adaptation = adaptation
        self.epoch = -1
        self.seen = 0
        self.sums: dict[str, float] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Add the relative gradient norms of one step, before clipping; after the last of these, set the shares."""
        if trainer.current_epoch != self.epoch:
            self.epoch, self.seen, self.sums = trainer.current_epoch, 0, {}
        if self.seen == self.adaptation.batches:
            return
        for name, ratio in relative_gradient_norms(self._measured(pl_module)).items():
            self.sums[name] = self.sums.get(name, 0.0) + ratio
        self.seen += 1
        if self.seen == self.adaptation.batches:
            self._share()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make do with fewer batches, where the epoch had no more."""
        if 0 < self.seen < self.adaptation.batches:
            self._share()

    def state_dict(self) -> dict[str, Any]:
        """Return the shares, and what is measured so far."""
        return {
            "factors": dict(self.adaptation.factors),
            "epoch": self.epoch,
            "seen": self.seen,
            "sums": dict(self.sums),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.adaptation.factors = dict(state_dict["factors"])
        self.epoch, self.seen, self.sums = state_dict["epoch"], state_dict["seen"], dict(state_dict["sums"])

    def _measured(self, pl_module: LightningModule) -> dict[str, Tensor]:
        module: Any = pl_module
        given = [stage for stage in module.network.stages() if stage.name not in module.fresh]
        named = {name: each for stage in given for name, each in stage_parameters(module.network, stage).items()}
        return {name: each for name, each in named.items() if each.grad is not None}

    def _share(self) -> None:
        largest = max(self.sums.values(), default=0.0)
        if largest > 0:
            self.adaptation.factors = {name: each / largest for name, each in self.sums.items()}


def relative_gradient_norms(parameters: dict[str, Tensor]) -> dict[str, float]:
    """Return |gradient| / |parameter| by name; none for a parameter that is 0, or where a gradient is not finite."""
    if not parameters:
        return {}
    gradients = torch.stack([_norm(each.grad) for each in parameters.values() if each.grad is not None])
    norms = torch.stack([_norm(each) for each in parameters.values()])
    ratios = (gradients / norms).tolist()
    if not torch.isfinite(gradients).all():  # a step that mixed precision skips
        return {}
    return {name: ratio for name, ratio, norm in zip(parameters, ratios, norms.tolist(), strict=True) if norm > 0}


def _norm(tensor: Tensor) -> Tensor:
    return whole(torch.linalg.vector_norm(tensor.detach().float()))
