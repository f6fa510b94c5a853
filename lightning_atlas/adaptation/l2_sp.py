"""L2-SP: weights are drawn to where they started, not to zero."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_atlas.adaptation.base import Adaptation
from lightning_atlas.adaptation.shards import local, local_part
from lightning_atlas.networks.base import Stage

# One kernel for many tensors, as torch's optimizers have it; there is no public name.
add_each = torch._foreach_add_  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


@dataclass(frozen=True)
class L2SP(Adaptation):
    """Draw weights that were given towards their source values, and fresh ones towards zero.

    The penalty is alpha / 2 * |w - w0|^2 of what the source weights gave and beta / 2 * |w|^2 of all else; it takes the
    place of the optimizer's weight decay. The matrices of LoRA count as fresh.

    Source: Li et al. 2018, *Explicit Inductive Bias for Transfer Learning with Convolutional Networks*; 0.01 for both
    as in the examples of tllib (SGD, learning rate 0.01).
    Differs: its gradient is added, before clipping, in place of the penalty to the loss, which comes to the same.

    Args:
        alpha: Strength for what the source weights gave.
        beta: Strength for all else.
    """

    alpha: float = 0.01
    beta: float = 0.01
    needs_anchor: ClassVar[bool] = True
    replaces_weight_decay: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not value >= 0:
                raise ValueError(f"{name} of L2SP is {value}; it must be 0 or more")

    def callbacks(self) -> list[Callback]:
        """Return what changes the gradients before each step of the optimizer."""
        return [Pull(self.alpha, self.beta)]

    def cautions(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[str]:
        """Say where there is nothing to hold on to."""
        if all(stage.name in fresh for stage in stages):
            return [f"L2SP has no source weights to draw towards: it is a weight decay of {self.beta:g}"]
        return []


class Pull(Callback):
    """Adds the gradient of the penalty.

    Args:
        alpha: As in `L2SP`.
        beta: As in `L2SP`.
    """

    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha = alpha
        self.beta = beta
        self.starts: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the source values where the parameters are."""
        module: Any = pl_module
        named = dict(module.network.named_parameters())
        self.starts = {name: local_part(value, named[name]) for name, value in module.anchor.items() if name in named}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Add alpha * (w - w0) or beta * w to each gradient."""
        module: Any = pl_module
        moving = {name: each for name, each in module.network.named_parameters() if each.grad is not None}
        given = [name for name in moving if name in self.starts]
        fresh = [name for name in moving if name not in self.starts]
        with torch.no_grad():
            for names, strength in ((given, self.alpha), (fresh, self.beta)):
                if names:
                    add_each(_gradients(moving, names), [local(moving[n]) for n in names], alpha=strength)
            if given:
                add_each(_gradients(moving, given), [self.starts[n] for n in given], alpha=-self.alpha)


def _gradients(parameters: dict[str, Any], names: Sequence[str]) -> list[Tensor]:
    return [local(parameters[name].grad) for name in names]
