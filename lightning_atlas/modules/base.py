"""The one LightningModule behind pre-training and transfer: structure, weights, groups, and a single step."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard

from lightning_atlas.adaptation.groups import fresh_stages
from lightning_atlas.adaptation.schedules import Schedule
from lightning_atlas.box_metrics import BoxResult
from lightning_atlas.contract import Contract, check_allowed
from lightning_atlas.intake.adapters import Adapter, chosen_adapters, met_by
from lightning_atlas.intake.inflation import HeadRule, start_at_prior
from lightning_atlas.intake.loading import IntakeReport, as_adapted, load_weights, read_weights
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.metrics import DiceResult
from lightning_atlas.modules.adapting import Adapting
from lightning_atlas.modules.agreement import (
    adopt_kept,
    adopting,
    check_agreement,
    check_prepared,
    not_stated,
    stated_contract,
)
from lightning_atlas.modules.buffers import share_buffers
from lightning_atlas.networks.base import Network, check_stages, without_context
from lightning_atlas.scan_metrics import ScanResult
from lightning_atlas.tasks.base import Task
from lightning_atlas.types import Batch

Split = Literal["train", "val", "test"]


class AtlasModule(Adapting):
    """Train a network on a task, from given weights or from scratch.

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
    ) -> None:
        network = task.adapted(network)
        check_stages(network)
        super().__init__(network, optimizer, schedule)
        self.task = task
        self.weights = weights
        self.required_share = required_share
        self.adopts = contract == "adopt"
        self.allow = tuple(allow or ())
        self.head: HeadRule = head
        self.head_prior = head_prior
        check_allowed(self.allow)
        self.adapters = chosen_adapters(adapters, self.allow)
        self.contract: Contract | None = None
        self.source: dict[str, str] | None = None
        self.intake: IntakeReport | None = None
        self.adopted: list[str] = []
        self.allowed: list[str] = []
        self.keeps_logits = False
        """Whether callbacks get the logits of whole images too, which are large."""
        self.results: dict[str, DiceResult | ScanResult | BoxResult] = {}
        self._configured = False
        self._read: SourceWeights | None = None
        self._weights_error: Exception | None = None

    # Structure, then source weights, then what moves, then sharding: the order matters, and once is enough.

    def configure_callbacks(self) -> list[Callback]:
        """Have the data prepared as the weights expect them; return what the adaptations do in a fit."""
        # Trainer._run calls this before `prepare_data`, with trainer and data attached, and no other hook of ours.
        if self.adopts:
            self._adopt()
        return super().configure_callbacks()

    def _adopt(self) -> None:
        if self._configured and self.contract is not None:
            self.adopted = adopting(self.trainer).adopt(self.contract)
        elif self.trainer.state.fn != "fit":
            adopting(self.trainer).adopt_later()
        elif self.weights is not None:
            data = adopting(self.trainer)
            try:
                expected = stated_contract(self._source_weights(self.weights), self.weights)
                self.adopted = [*data.adopt(expected), *not_stated(expected)]
            except (OSError, ValueError) as error:
                self._weights_error = error
                data.adopt_later()

    def setup(self, stage: str) -> None:
        """Take the contract of the data, and with it the classes."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and hasattr(datamodule, "contract"):
            self.contract = datamodule.contract.remembering(self.contract)
        if datamodule is not None and hasattr(datamodule, "context"):
            datamodule.context = self.network.context

    def configure_model(self) -> None:
        """Size the head, load the source weights of a fit, freeze, shard; the second call does nothing."""
        if self._configured or self.contract is None:
            return
        self._configured = True
        self.task.agree(self.contract)
        self.task.setup(self.contract.classes, self.contract.mirrored_axes, self.contract.overlapping)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())  # the run's seed alone, so that ranks draw the same head
            self.network.resize(self.task.outputs(self.contract.classes))
        fits = self._trainer is not None and self.trainer.state.fn == "fit"
        if fits and self.weights is not None:
            self._take_weights(self.weights)
        if fits and self.head_prior is not None:
            fresh = self.intake.fresh_outputs if self.intake else None
            start_at_prior(self.network, self.contract.classes, self.head_prior, fresh)
        self.build()
        if fits:
            self.settle(self.intake.fresh_names if self.intake else None)
        if self.device_mesh is not None:
            self._shard()

    def _source_weights(self, name: str) -> SourceWeights:
        self._read = self._read or as_adapted(read_weights(name), self.adapters)
        return self._read

    def _take_weights(self, name: str) -> None:
        # Whether a run resumes is known only after this hook, so a fault here is kept until the first step.
        if self._weights_error is not None:
            return
        try:
            source, contract = self._source_weights(name), self.contract or Contract()
            if source.contract is not None:
                self.allowed = check_agreement(source.contract, contract, self.allow, name, met_by(self.adapters))
            self.intake = load_weights(
                self.network,
                source,
                contract.classes,
                self.required_share,
                self.adapters,
                self.head,
                channels=contract.channels,
            )
            self.source = {"origin": name, "sha256": source.sha256}
        except (OSError, ValueError) as error:
            self._weights_error = error
            return
        finally:
            self._read = None  # as large as the network
        self.fresh = fresh_stages(self.network, self.intake.fresh_names)

    def _shard(self) -> None:
        mesh = self.device_mesh["data_parallel"]  # pyright: ignore[reportOptionalSubscript]
        if mesh.size() != self.trainer.world_size:
            raise ValueError(
                f"the strategy shares data among {mesh.size()} of {self.trainer.world_size} processes, so the others "
                f"would see the same cases and drift apart: set trainer.strategy.init_args.data_parallel_size: "
                f"{self.trainer.world_size} and tensor_parallel_size: 1"
            )
        modules = dict(self.network.named_modules())
        for stage in self.network.stages():  # a stage may name a buffer besides, which every process keeps whole
            fully_shard([modules[name] for name in stage.modules if name in modules], mesh=mesh)
        fully_shard(self.network, mesh=mesh)

    def on_fit_start(self) -> None:
        """Print what was loaded and what will move."""
        if self._weights_error is not None and (not self.trainer.ckpt_path or self.needs_anchor):
            raise self._weights_error
        self.train()
        if self.trainer.ckpt_path:
            self.print(f"resumed from {self.trainer.ckpt_path}")
        elif self.intake is not None:
            self.print(f"weights from {self.weights}\n{self.intake}")
            for line in self.adopted:
                self.print(f"adopted: {line}")
            for difference in self.allowed:
                self.print(f"allowed: {difference}")
        self.print(self.settled.table(self.optimizer, self.schedule))

    # One step, three callers.

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch of patches."""
        return self._step(batch, "train")["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Score one whole volume; returns its prediction."""
        return self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Score one whole volume; returns its prediction."""
        return self._step(batch, "test")

    def _step(self, batch: Batch, split: Split) -> dict[str, Any]:
        if split == "train":
            losses = self.task.loss(self.task.answer(self.network, batch), without_context(batch, self.network.context))
            losses = self.penalized(losses, batch["image"])
            values = {f"train/{name}": value.detach() for name, value in losses.items()}
            self.log_dict(values, batch_size=len(batch["subject"]))
            return losses
        logits = self.task.infer(self.network, batch["image"])
        outputs = {"prediction": self.task.decode(logits), **({"logits": logits} if self.keeps_logits else {})}
        del logits
        self.task.update(split, outputs["prediction"], batch)
        return outputs

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return what the task predicts of whole images; of voxels a `Prediction`."""
        return self.task.decode(self.task.infer(self.network, batch["image"]))

    def on_validation_epoch_start(self) -> None:
        """Keep the same, and whole, weights and statistics in every process."""
        self._keep_whole(True)

    def on_test_epoch_start(self) -> None:
        """Keep the same, and whole, weights and statistics in every process."""
        self._keep_whole(True)

    def on_predict_epoch_start(self) -> None:
        """Keep the same, and whole, weights and statistics in every process."""
        self._keep_whole(True)

    def on_validation_epoch_end(self) -> None:
        """Log scores as `val/dice` and `val/dice/CLASS`, and of several datasets as `val/dataset/NAME/dice`."""
        self._keep_whole(False)
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Log scores as `test/dice` and `test/dice/CLASS`, and of several datasets as `test/dataset/NAME/dice`."""
        self._keep_whole(False)
        self._score("test")

    def on_predict_epoch_end(self) -> None:
        """Keep a part of the weights again, if they are sharded."""
        self._keep_whole(False)

    def _keep_whole(self, whole: bool) -> None:
        if whole:
            share_buffers(self.network)  # those of the last step in training differ
        # Sharded weights are gathered by all processes together, so after the first window they stay: the processes
        # have unequal numbers of windows, and would wait for each other for ever.
        if not isinstance(self.network, FSDPModule):
            return
        self.network.set_reshard_after_forward(not whole)
        if not whole:
            self.network.set_reshard_after_forward(False, recurse=False)  # torch's default for the root
            for each in self.network.modules():
                if isinstance(each, FSDPModule):
                    each.reshard()

    def _score(self, split: Literal["val", "test"]) -> None:
        result = self.task.compute(split)
        self.task.reset(split)
        self.results[split] = result
        classes = (self.contract or Contract()).classes
        scores, main = result.scores(classes), result.headline
        list_datasets = getattr(getattr(self.trainer, "datamodule", None), "datasets", None)
        parts = result.per_dataset(list_datasets(split)) if list_datasets else {}
        if len(parts) > 1:
            scores |= {f"dataset/{name}/{main}": part.mean for name, part in parts.items()}
        known = {f"{split}/{name}": each for name, each in scores.items() if name == main or not math.isnan(each)}
        self.log_dict(known, sync_dist=True)  # equal on all ranks already

    # What a checkpoint carries besides the tensors: enough to build the network again.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the contract, the origin of the weights, and which stages were fresh."""
        contract = (self.contract or Contract()).to_dict()
        known = {"contract": contract, "source": self.source, "fresh": sorted(self.fresh)}
        steps = {"total_steps": self.plan.total_steps} if self.plan is not None else {}
        checkpoint["lightning_atlas"] = known | steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what `on_save_checkpoint` added; outside a trainer, size the head by it."""
        kept = checkpoint["lightning_atlas"]
        self._check_source(kept["source"])
        self.source, self.fresh = kept["source"], set(kept["fresh"])
        if self.plan is not None and self.plan.fresh != self.fresh:
            if self.device_mesh is not None:
                raise ValueError(f"to resume a sharded run, the file of its weights is needed: {self._weights_error}")
            self.settle()  # by the checkpoint: the file of weights is not here to tell what was fresh
        if self.plan is not None and "total_steps" in kept:
            self.go_on(kept["total_steps"], checkpoint["global_step"])
        stored = Contract.from_dict(kept["contract"])
        if self.contract is not None and stored.classes != self.contract.classes:
            raise ValueError(
                f"the checkpoint predicts {', '.join(stored.classes)}; data.init_args.classes says "
                f"{', '.join(self.contract.classes)}: take the recipe that made it"
            )
        if self.contract is not None:
            self._keep_to(stored)
        self.contract = (self.contract or stored).remembering(stored)
        self.task.agree(self.contract)
        self.configure_model()

    def _keep_to(self, stored: Contract) -> None:
        """Have the data prepared as a checkpoint expects them, which is known only now, or refuse them."""
        if self.adopts:
            data = adopting(self.trainer)
            self.adopted = adopt_kept(self.trainer, data, stored)
            self.contract = data.contract
            for line in self.adopted:
                self.print(f"adopted: {line}")
        check_prepared(stored, self.contract or Contract(), self.allow)

    def _check_source(self, kept: dict[str, str] | None) -> None:
        """Refuse to be pulled back to other weights than before."""
        fits = self._trainer is not None and self.trainer.state.fn == "fit"
        if not fits or not self.needs_anchor or self._weights_error is not None:
            return
        before, now = kept or {}, self.source or {}
        if before.get("sha256") != now.get("sha256"):
            told = [
                f"{each['origin']} with hash {each['sha256'][:12]}" if each else "random weights"
                for each in (before, now)
            ]
            raise ValueError(
                f"the run began from {told[0]}, and goes on from {told[1]}: its adaptations pull back to the former; "
                "give these in model.init_args.weights (for random ones null)"
            )
