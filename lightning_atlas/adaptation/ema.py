"""A moving average of the weights, which is scored and saved in their place."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_atlas.adaptation.base import Adaptation
from lightning_atlas.adaptation.shards import local, local_part, whole
from lightning_atlas.adaptation.statistics import reestimate_statistics, statistic_layers

RAW = "raw_weights"
"""Where a checkpoint keeps the weights that training goes on from."""
AVERAGE = "average_weights"
"""Where it keeps the average of weights whose own precision would round it."""


@dataclass(frozen=True)
class EMA(Adaptation):
    """Average the weights over the steps, and score and save the average.

    Validation, test, the checkpoint's `state_dict` and the network after the fit have the average; training goes on
    from the weights themselves, which a checkpoint keeps beside, so that a run resumes exactly. Running statistics of
    the average are estimated anew, from the last training patches. The average of weights of half precision is kept in
    single precision, since at a decay of 0.999 it would hardly move in theirs.

    Source: Polyak & Juditsky 1992; 0.999 as in Lightning's `EMAWeightAveraging`. The decay of step t is at most
    (1 + t) / (10 + t), as in TensorFlow's `ExponentialMovingAverage`, so that short runs forget their start too.

    Args:
        decay: Share of the average that stays at each step.
        statistics_batches: Training batches kept for the running statistics; networks without these keep none.
    """

    decay: float = 0.999
    statistics_batches: int = 10

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"the decay of EMA is {self.decay}; it must be 0 or more and below 1, such as 0.999")
        if self.statistics_batches < 1:
            raise ValueError(f"statistics_batches of EMA is {self.statistics_batches}; it must be 1 or more")

    def callbacks(self) -> list[Callback]:
        """Return what averages after each step."""
        return [Averaging(self.decay, self.statistics_batches)]


class Averaging(Callback):
    """Keeps the average, and puts it in the place of the weights where these are scored or saved.

    Args:
        decay: As in `EMA`.
        statistics_batches: As in `EMA`.
    """

    def __init__(self, decay: float, statistics_batches: int) -> None:
        self.decay = decay
        self.images: deque[Tensor] = deque(maxlen=statistics_batches)
        self.moving: dict[str, nn.Parameter] = {}
        self.average: dict[str, Tensor] = {}
        self.raw: dict[str, Tensor] = {}
        """The weights themselves, and their running statistics, while the average is in their place."""
        self.layers: list[str] = []
        """Those whose running statistics followed the last training batch."""
        self.statistics: dict[str, Tensor] = {}
        self.averaged_steps = 0
        self._restored: dict[str, Tensor] | None = None
        self._restored_average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the average with the weights, or go on with what a checkpoint has of both.

        Raises:
            ValueError: Checkpoints are to be saved without the callbacks' part.
        """
        if any(isinstance(each, ModelCheckpoint) and each.save_weights_only for each in trainer.checkpoint_callbacks):
            raise ValueError(
                "EMA saves its average in whole checkpoints: set save_weights_only: false in ModelCheckpoint"
            )
        network: Any = pl_module.network
        self.moving = {name: each for name, each in network.named_parameters() if each.requires_grad}
        self.average = {name: _precise(each.detach().clone()) for name, each in self.moving.items()}
        self.averaged_steps = trainer.global_step
        if self._restored is not None:
            tensors = self._tensors(pl_module)
            for name, value in self._restored.items():
                if name in tensors:
                    if name not in self.average:
                        self.statistics[name] = tensors[name].clone()
                    local(tensors[name]).copy_(local_part(value, tensors[name]))
            for name, value in self._restored_average.items():
                if name in self.average:
                    local(self.average[name]).copy_(local_part(value, self.average[name]))
            self._restored, self._restored_average = None, {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the patches, where running statistics will be estimated from them."""
        layers = statistic_layers(pl_module.network)  # pyright: ignore[reportArgumentType]
        self.layers = [name for name, layer in layers.items() if layer.training]
        if self.layers:
            self.images.append(batch["image"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, if the optimizer took a step."""
        self._follow(trainer)

    def _follow(self, trainer: Trainer) -> None:
        if trainer.global_step == self.averaged_steps:
            return
        self.averaged_steps = trainer.global_step
        self.statistics = {}
        average = get_ema_multi_avg_fn(min(self.decay, (1 + trainer.global_step) / (10 + trainer.global_step)))
        kept, now = ([_precise(local(each)) for each in of.values()] for of in (self.average, self.moving))
        average(kept, now, self.averaged_steps)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in its place."""
        if self.average and _fits(trainer):
            self._enter(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back, unless the fit is over."""
        if _fits(trainer):
            self._leave(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the network."""
        self._enter(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights back, unless the fit is over."""
        if _fits(trainer):
            self._leave(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the average as the weights, and the weights beside."""
        if not self.average:
            return
        inside = bool(self.raw)
        self._enter(trainer, pl_module)
        now = self._tensors(pl_module)
        average, raw = ({name: whole(tensors[name]).cpu().clone() for name in self.raw} for tensors in (now, self.raw))
        for name, value in average.items():
            if f"network.{name}" in checkpoint["state_dict"]:  # only the first process has it under FSDP2
                checkpoint["state_dict"][f"network.{name}"] = value
        checkpoint[RAW] = raw
        rounded = {name: each for name, each in self.average.items() if each.dtype != self.moving[name].dtype}
        if rounded:
            checkpoint[AVERAGE] = {name: whole(each).cpu().clone() for name, each in rounded.items()}
        if not inside:
            self._leave(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the weights until the network has its own tensors back."""
        self._restored, self._restored_average = checkpoint.get(RAW), checkpoint.get(AVERAGE, {})

    def _tensors(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """Return what moves and the running statistics, as they lie in the network."""
        network: Any = pl_module.network
        found = {
            f"{name}.{own}": each for name, layer in statistic_layers(network).items() for own, each in _own(layer)
        }
        return {**self.moving, **found}

    def _enter(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.raw:
            return
        self._follow(trainer)  # another callback may ask before this one's turn
        network: Any = pl_module.network
        tensors = self._tensors(pl_module)
        self.raw = {name: each.detach().clone() for name, each in tensors.items()}
        for name, value in self.average.items():
            local(tensors[name]).copy_(local(value))
        if self.layers and not self.statistics:
            with trainer.precision_plugin.forward_context():
                reestimate_statistics(network, self.images, self.layers)
            layers = statistic_layers(network)
            found = {f"{name}.{own}": each for name in self.layers for own, each in _own(layers[name])}
            self.statistics = {name: each.clone() for name, each in found.items()}
        for name, value in self.statistics.items():
            tensors[name].copy_(value)

    def _leave(self, pl_module: LightningModule) -> None:
        tensors = self._tensors(pl_module)
        for name, value in self.raw.items():
            local(tensors[name]).copy_(local(value))
        self.raw = {}


def _fits(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit"


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _own(layer: nn.Module) -> list[tuple[str, Tensor]]:
    return list(layer.named_buffers(recurse=False))
