"""The one LightningModule behind pre-training and transfer: structure, weights, groups, and a single step."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import lightning
import torch
from jaxtyping import Integer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import LambdaLR

from lightning_atlas.adaptation.intake import IntakeReport, load_weights, read_weights
from lightning_atlas.adaptation.schedules import ConstantSchedule, Schedule
from lightning_atlas.adaptation.stages import (
    Adaptation,
    combined,
    freeze,
    fresh_stages,
    frozen_stages,
    parameter_groups,
    set_modes,
    stage_table,
)
from lightning_atlas.contract import Contract, differences
from lightning_atlas.metrics import DiceResult
from lightning_atlas.networks.base import Network, check_stages, resize_output
from lightning_atlas.tasks.base import Task
from lightning_atlas.types import Batch

Split = Literal["train", "val", "test"]


class AtlasModule(lightning.LightningModule):
    """Train a network on a task, from given weights or from scratch.

    Args:
        network: What is trained; its last layer is sized from the classes of the data.
        task: What is predicted: loss, inference and metrics.
        optimizer: Takes the parameter groups and returns the optimizer; its learning rate is the peak of the schedule.
        schedule: Learning rate over the run as a share of the peak, in closed form; `null` holds it constant.
        weights: A file or a name of published weights to start from; `null` starts from scratch. Read only when a fit
            starts afresh, never when it resumes and never by test or predict.
        required_share: The least share of the encoder's parameters that `weights` must fill.
        accept: Keys of the contract in which data and weights are meant to differ, each with the reason.
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        weights: str | None = None,
        required_share: float = 0.9,
        accept: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        check_stages(network)
        self.network = network
        self.task = task
        self.optimizer = optimizer
        self.schedule = schedule or ConstantSchedule()
        self.weights = weights
        self.required_share = required_share
        self.accept = accept or {}
        self.adaptation: Sequence[Adaptation] = ()
        self.contract: Contract | None = None
        self.source: dict[str, str] | None = None
        self.intake: IntakeReport | None = None
        self.meant: list[str] = []
        self.fresh: set[str] = {stage.name for stage in network.stages()}
        self.frozen: set[str] = set()
        self.results: dict[str, DiceResult] = {}
        self._configured = False
        self._weights_error: Exception | None = None

    # Structure, then source weights, then what moves, then sharding: the order matters, and once is enough.

    def setup(self, stage: str) -> None:
        """Take the contract of the data, and with it the classes."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and hasattr(datamodule, "contract"):
            self.contract = datamodule.contract

    def configure_model(self) -> None:
        """Size the head, load the source weights of a fit, freeze, shard; the second call does nothing."""
        if self._configured or self.contract is None:
            return
        self._configured = True
        self.task.setup(self.contract.classes, self.contract.mirrored_axes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())  # the run's seed alone, so that ranks draw the same head
            resize_output(self.network, self.task.outputs(self.contract.classes))
        if self._trainer is not None and self.trainer.state.fn == "fit":
            if self.weights is not None:
                self._take_weights(self.weights)
            self.frozen = set(frozen_stages(self.adaptation, self.network.stages(), self.fresh, self.total_steps))
            freeze(self.network, self.frozen)
        if self.device_mesh is not None:
            self._shard()

    def _take_weights(self, name: str) -> None:
        # Whether a run resumes is known only after this hook, so a fault here is kept until the first step.
        try:
            source = read_weights(name)
            self._check_contract(source.contract)
            contract = self.contract or Contract()
            self.intake = load_weights(self.network, source, contract.classes, self.required_share)
            self.source = {"origin": name, "sha256": source.sha256}
        except (OSError, ValueError) as error:
            self._weights_error = error
            return
        self.fresh = fresh_stages(self.network, self.intake.fresh_names)

    def _check_contract(self, expected: Contract | None) -> None:
        found = differences(expected, self.contract) if expected and self.contract else []
        if broken := [each for each in found if each.key not in self.accept]:
            lines = "; ".join(str(each) for each in broken)
            keys = ", ".join(f'{each.key}: "your reason"' for each in broken)
            raise ValueError(
                f"the data are not what the weights {self.weights} expect: {lines}. "
                "Change data.init_args.preprocess (or modality, in data.init_args.source), or say why it is meant: "
                f"model.init_args.accept: {{{keys}}}"
            )
        self.meant = [f"{each} ({self.accept[each.key]})" for each in found]

    def _shard(self) -> None:
        mesh = self.device_mesh["data_parallel"]  # pyright: ignore[reportOptionalSubscript]
        if mesh.size() != self.trainer.world_size:
            raise ValueError(
                f"the strategy shares data among {mesh.size()} of {self.trainer.world_size} processes, so the others "
                f"would see the same cases and drift apart: set trainer.strategy.init_args.data_parallel_size: "
                f"{self.trainer.world_size} and tensor_parallel_size: 1"
            )
        for stage in self.network.stages():
            fully_shard([self.network.get_submodule(name) for name in stage.modules], mesh=mesh)
        fully_shard(self.network, mesh=mesh)

    # What moves, and how fast.

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

    def rates(self, step: int) -> dict[str, float]:
        """Return each stage's learning rate at a step as a share of the optimizer's."""
        moving = combined(self.adaptation, self.network.stages(), self.fresh, step, self.total_steps)
        share = self.schedule(step, self.total_steps)
        return {name: share * multiplier for name, multiplier in moving.items()}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make one group for each stage that moves, from the parameters as they are now (sharding replaces them)."""
        groups = parameter_groups(self.network, self.frozen)
        names = [group["name"] for group in groups]
        optimizer = self.optimizer(groups)
        scheduler = LambdaLR(optimizer, [partial(self._rate, name) for name in names])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate(self, name: str, step: int) -> float:
        return self.rates(step)[name]

    def train(self, mode: bool = True) -> "AtlasModule":
        """Set the mode of all but the frozen stages, which stay in evaluation: their statistics and dropout rest."""
        super().train(mode)
        set_modes(self.network, self.frozen)
        return self

    def on_fit_start(self) -> None:
        """Print what was loaded and what will move."""
        if self._weights_error is not None and not self.trainer.ckpt_path:
            raise self._weights_error
        self.train()
        if self.trainer.ckpt_path:
            self.print(f"resumed from {self.trainer.ckpt_path}")
        elif self.intake is not None:
            self.print(f"weights from {self.weights}\n{self.intake}")
            for difference in self.meant:
                self.print(f"accepted: {difference}")
        self.print(self.describe_stages())

    def describe_stages(self) -> str:
        """Return a table of the stages: how large each is, whether it moves, and its learning rates."""
        peak = self.trainer.optimizers[0].defaults["lr"]
        last = self.total_steps - 1
        rates = [self.rates(step) for step in (*range(0, last, max(1, last // 100)), last)]
        spans = {
            name: (rates[0][name] * peak, max(rate[name] for rate in rates) * peak, rates[-1][name] * peak)
            for name in rates[0]
        }
        return stage_table(self.network, self.frozen, spans, self.fresh)

    # One step, three callers.

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch of patches."""
        return self._step(batch, "train")["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Score one whole volume; returns its prediction."""
        return self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Score one whole volume; returns its prediction."""
        return self._step(batch, "test")

    def _step(self, batch: Batch, split: Split) -> dict[str, Tensor]:
        if split == "train":
            losses = self.task.loss(self.network(batch["image"]), batch)
            values = {f"train/{name}": value.detach() for name, value in losses.items()}
            self.log_dict(values, batch_size=len(batch["subject"]))
            return losses
        prediction = self.predict_step(batch, 0)
        self.task.update(split, prediction, batch)
        return {"prediction": prediction}

    def predict_step(self, batch: Batch, batch_idx: int) -> Integer[Tensor, "batch i j k"]:
        """Return the predicted class of each voxel: 0 is background, 1 the contract's first class."""
        return self.task.decode(self.task.infer(self.network, batch["image"]))

    def on_validation_epoch_end(self) -> None:
        """Log Dice as `val/dice` and `val/dice/CLASS`."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Log Dice as `test/dice` and `test/dice/CLASS`."""
        self._score("test")

    def _score(self, split: Literal["val", "test"]) -> None:
        result = self.task.compute(split)
        self.task.reset(split)
        self.results[split] = result
        classes = (self.contract or Contract()).classes
        values = zip(classes, result.per_class().tolist(), strict=True)
        scores = {f"{split}/dice/{name}": value for name, value in values if not math.isnan(value)}
        self.log_dict({f"{split}/dice": result.mean, **scores}, sync_dist=True)  # equal on all ranks already

    # What a checkpoint carries besides the tensors: enough to build the network again.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the contract, the origin of the weights, and which stages were fresh."""
        contract = (self.contract or Contract()).to_dict()
        checkpoint["lightning_atlas"] = {"contract": contract, "source": self.source, "fresh": sorted(self.fresh)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what `on_save_checkpoint` added; outside a trainer, size the head by it."""
        kept = checkpoint["lightning_atlas"]
        self.source, self.fresh = kept["source"], set(kept["fresh"])
        stored = Contract.from_dict(kept["contract"])
        if self.contract is not None and stored.classes != self.contract.classes:
            raise ValueError(
                f"the checkpoint predicts {', '.join(stored.classes)}; data.init_args.classes says "
                f"{', '.join(self.contract.classes)}: take the recipe that made it"
            )
        self.contract = self.contract or stored
        self.configure_model()
