"""Stochastic normalization: batch norm that leans on the source's statistics for a random half of its channels."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.adaptation.base import Adaptation
from lightning_atlas.networks.base import Network

Features = Float[Tensor, "batch features i j k"]


@dataclass(frozen=True)
class StochasticNorm(Adaptation):
    """Give each batch norm two branches in training, of which every channel takes one at random.

    One branch normalises by the batch, the other by the running statistics, which start as those of the source. In
    evaluation it is batch norm; names and shapes of all tensors stay.

    Source: Kou et al. 2020, *Stochastic Normalization*.
    Differs: what is drawn depends on the run's seed and the number of the batch alone, so a resumed run draws the same.

    Args:
        p: Probability with which a channel is normalised by the batch.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"p of StochasticNorm is {self.p}; it is a probability, from 0 to 1")

    def build(self, network: Network, fresh: Collection[str]) -> None:
        """Replace each BatchNorm3d.

        Raises:
            ValueError: There is none.
        """
        modules: dict[str, nn.Module] = dict(network.named_modules())
        found = {
            name: module
            for name, module in modules.items()
            if type(module) is nn.BatchNorm3d and module.running_mean is not None
        }
        if not found:
            raise ValueError(
                f"StochasticNorm changes batch norm, and {type(network).__name__} has no BatchNorm3d with running "
                "statistics; take StochasticNorm out of model.init_args.adaptation"
            )
        for name, module in found.items():
            network.set_submodule(name, StochasticNorm3d.of(module, self.p))

    def callbacks(self) -> list[Callback]:
        """Return what tells the layers the number of the batch."""
        return [Draws()]


class StochasticNorm3d(nn.BatchNorm3d):
    """Batch norm of volumes; in training a channel is normalised by the batch or by the running statistics.

    Args:
        num_features: Channels.
        p: Probability with which a channel is normalised by the batch.
        options: Of `torch.nn.BatchNorm3d`.
    """

    def __init__(self, num_features: int, p: float = 0.5, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.p = p
        self.seed: int | None = None
        """Of the next draw; without it, torch's own generator draws."""

    @classmethod
    def of(cls, norm: nn.BatchNorm3d, p: float) -> "StochasticNorm3d":
        """Return a layer with the tensors of a batch norm, not copies of them."""
        made = cls(norm.num_features, p, eps=norm.eps, momentum=norm.momentum, affine=norm.affine, device="meta")
        for name, parameter in norm.named_parameters():
            made.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers():
            made.register_buffer(name, buffer)
        return made.train(norm.training)

    def forward(self, input: Features) -> Features:
        """Return normalised features; the running statistics follow the batch as in batch norm."""
        if not self.training:
            return super().forward(input)
        # Copies: the other branch changes the statistics in place, and the gradient of this one needs them unchanged.
        mean, variance = (None if each is None else each.clone() for each in (self.running_mean, self.running_var))
        by_running = F.batch_norm(input, mean, variance, self.weight, self.bias, training=False, eps=self.eps)
        by_batch = super().forward(input)
        return torch.where(self._draw().to(input.device)[:, None, None, None], by_batch, by_running)

    def _draw(self) -> Bool[Tensor, " features"]:
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        return torch.rand(self.num_features, generator=generator) < self.p


class Draws(Callback):
    """Seeds the layers' draws by the run's seed, the number of the batch and the number of the layer."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a trainer that has replaced the layers.

        Raises:
            ValueError: They are gone.
        """
        if not any(isinstance(module, StochasticNorm3d) for module in pl_module.modules()):
            raise ValueError(
                "the trainer has turned the layers of StochasticNorm into other ones: set trainer.sync_batchnorm: false"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed each layer."""
        layers = [module for module in pl_module.modules() if isinstance(module, StochasticNorm3d)]
        first = trainer.fit_loop.epoch_loop.total_batch_idx * len(layers)
        for number, layer in enumerate(layers):
            layer.seed = (torch.initial_seed() * 1_000_003 + first + number) % 2**63
