"""Memory and time that a run expects, said before its first step."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from lightning_atlas.callbacks.memory import held_bytes, in_words, peak_bytes
from lightning_atlas.callbacks.progress import run_length, say
from lightning_atlas.callbacks.seams import Scored, scored
from lightning_atlas.types import Batch, Boxes


@dataclass(frozen=True)
class StepCost:
    """What one forward and backward pass took.

    Args:
        activations: Bytes kept for the backward pass.
        workspace: Bytes beyond these, the gradients and what was held before, at the peak; 0 where it was not seen.
        peak: Bytes held at the peak of the process; `None` where that cannot be asked.
        seconds: Duration of the pass.
    """

    activations: int
    workspace: int
    peak: int | None
    seconds: float


class Expectation(Callback):
    """Print the memory and time that a fit expects, from one pass over a batch of noise that leaves no trace."""

    def __init__(self) -> None:
        self.bytes_per_voxel: float | None = None
        self.memory_bytes: int | None = None
        self.seconds: float | None = None
        self._case_seconds: float | None = None
        self._case_start = 0.0

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take the time."""
        self._case_start = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep how long a case took in the sanity check, which comes before the first step."""
        if trainer.sanity_checking:
            self._case_seconds = time.perf_counter() - self._case_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and print."""
        shape = patch_shape(trainer)
        if shape is None or getattr(trainer, "fast_dev_run", False):
            return
        cost = measure_step(trainer, scored(pl_module), shape)
        self.bytes_per_voxel = (cost.activations + cost.workspace) / (shape[0] * shape[2] * shape[3] * shape[4])
        lines = [self._memory_line(trainer, cost, shape), self._time_line(trainer, cost)]
        if trainer.is_global_zero:
            say("\n".join(lines))

    def _memory_line(self, trainer: Trainer, cost: StepCost, shape: tuple[int, ...]) -> str:
        state = sum(missing_state_bytes(optimizer) for optimizer in trainer.optimizers)
        names = " and ".join(sorted({type(optimizer).__name__ for optimizer in trainer.optimizers}))
        counted = f"{in_words(cost.activations)} activations"
        trial = f"trial step on {'x'.join(map(str, shape))} noise"
        if cost.peak is None:
            return (
                f"expected memory {counted} (counted in a {trial}) + {in_words(state)} state of {names} + the program"
            )
        self.memory_bytes = cost.peak + state
        return (
            f"expected memory {in_words(self.memory_bytes)} on {trainer.strategy.root_device}: {in_words(cost.peak)} "
            f"at the peak of a {trial}, of it {counted}, + {in_words(state)} state of {names}"
        )

    def _time_line(self, trainer: Trainer, cost: StepCost) -> str:
        steps = (run_length(trainer) or trainer.global_step) - trainer.global_step
        passes = steps * trainer.accumulate_grad_batches
        loading = loading_seconds(trainer)
        self.seconds = passes * (cost.seconds + (loading or 0))
        loaded = "" if loading is None else f" + {loading:.3g} s to cut its patches"
        parts = [f"{passes} passes x {cost.seconds:.3g} s{loaded} (timed in that trial)"]
        cases, runs = _validation_cases(trainer), _validation_runs(trainer, passes)
        if cases and runs and self._case_seconds:
            self.seconds += runs * cases * self._case_seconds
            parts.append(f"{runs} validations of {cases} x {self._case_seconds:.3g} s (timed on the sanity check)")
        elif cases and runs:
            parts.append(f"{runs} validations of {cases}, not timed yet")
        return f"expected time {duration(self.seconds)}: {' + '.join(parts)}"


def duration(seconds: int | float) -> str:
    """Return a time span as people read it."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def patch_shape(trainer: Trainer) -> tuple[int, ...] | None:
    """Return the shape of the images that one process trains on; `None` if the data module does not state it."""
    data = getattr(trainer, "datamodule", None)
    size = getattr(getattr(data, "patches", None), "size", None)
    batch, contract = getattr(data, "batch_size", None), getattr(data, "contract", None)
    if size is None or batch is None or contract is None:
        return None
    return (max(1, batch // trainer.world_size), len(contract.channels), *size)


def loading_seconds(trainer: Trainer) -> float | None:
    """Return the median time of three batches; `None` where processes of their own load them beside the training."""
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or loader.num_workers or isinstance(loader.dataset, IterableDataset):
        return None
    times = []
    with isolate_rng():
        batches = iter(loader)
        for _ in range(3):
            start = time.perf_counter()
            if next(batches, None) is None:
                break
            times.append(time.perf_counter() - start)
    return statistics.median(times) if times else None


def measure_step(trainer: Trainer, module: Scored, shape: tuple[int, ...]) -> StepCost:
    """Run a pass to count, and one to time; the module and the random generators are left as they were."""
    device, network = trainer.strategy.root_device, module.network
    saved = SavedBytes(network)
    with no_trace(network):
        batch = noise_batch(shape, module, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        before, peak_before = held_bytes(device), peak_bytes(device)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
            _pass(trainer, module, batch)
        gradients = sum(_local_bytes(each.grad) for each in network.parameters() if each.grad is not None)
        start = time.perf_counter()
        _pass(trainer, module, batch)
        seconds = time.perf_counter() - start
        peak = peak_bytes(device)
    workspace = 0
    if before is not None and peak is not None and peak_before is not None and peak > peak_before:
        workspace = max(0, peak - before - saved.total - gradients)
    return StepCost(saved.total, workspace, peak, seconds)


def _pass(trainer: Trainer, module: Scored, batch: Batch) -> None:
    """Run forward and backward on the network itself, not its wrapper, so that no gradient is exchanged."""
    image = trainer.precision_plugin.convert_input(batch["image"])
    with trainer.precision_plugin.forward_context():
        loss = _boxes_loss(module, {**batch, "image": image}) if "boxes" in batch else _loss(module, image, batch)
    if loss.requires_grad:
        loss.backward()
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)


def _boxes_loss(module: Scored, batch: Batch) -> Tensor:
    return module.task.loss(module.task.answer(module.network, batch), batch)["loss"]


def _loss(module: Scored, image: Tensor, batch: Batch) -> Tensor:
    logits = module.network(image)
    finest = logits if isinstance(logits, Tensor) else next(iter(logits))
    voxelwise = finest.shape[2:] == image.shape[2:]
    return module.task.loss(logits, batch)["loss"] if voxelwise else _mean(logits)


def _mean(outputs: Any) -> Tensor:
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return torch.stack([tensor.float().mean() for tensor in tensors]).sum()


def noise_batch(shape: tuple[int, ...], module: Scored, device: torch.device) -> Batch:
    """Return a batch of noise in which every class is drawn."""
    cases, _, *grid = shape
    classes = len(module.contract.classes)
    states = torch.zeros(classes + 2, classes, dtype=torch.int8, device=device)
    states[0] = -1
    states[2:] = torch.eye(classes, dtype=torch.int8, device=device)
    batch = Batch(
        image=torch.randn(shape, device=device),
        label=torch.randint(1, classes + 2, (cases, *grid), dtype=torch.uint8, device=device),
        states=states.expand(cases, -1, -1),
        drawn=(states >= 0).expand(cases, -1, -1),
        background=torch.tensor([-1, 1] + [0] * classes, dtype=torch.int8, device=device).expand(cases, -1),
        spacing_mm=torch.ones(cases, 3, device=device),
        affine=torch.eye(4, device=device).expand(cases, -1, -1),
        index=torch.arange(cases, device=device),
        subject=["noise"] * cases,
        seed=torch.zeros(cases, dtype=torch.int64, device=device),
    )
    if module.contract.predicts == "boxes":  # one in the middle of each image
        ends = torch.tensor([[0.25 * side for side in grid] + [0.75 * side for side in grid]], device=device)
        batch["boxes"] = [Boxes(ends, torch.zeros(1, dtype=torch.long, device=device)) for _ in range(cases)]
    return batch


@contextmanager
def no_trace(network: nn.Module) -> Iterator[None]:
    """Put back gradients, buffers and random states on leaving."""
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    try:
        with isolate_rng():
            for parameter, _ in gradients:
                parameter.grad = None
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


class SavedBytes:
    """Counts the bytes that autograd keeps for the backward pass, each storage once and the parameters never.

    Args:
        network: Its parameters and buffers are not counted.
    """

    def __init__(self, network: nn.Module) -> None:
        own = [*network.parameters(), *network.buffers()]
        self._own = {_local(tensor).untyped_storage().data_ptr() for tensor in own}
        self._storages: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Bytes counted so far."""
        return sum(self._storages.values())

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is being saved."""
        storage = _local(tensor).untyped_storage()
        if storage.data_ptr() not in self._own:
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        """Return what was saved."""
        return tensor


# Tensors of a parameter's size that an optimizer keeps for it, by the class that first names them.
MOMENTS = {"Adam": 2, "AdamW": 2, "NAdam": 2, "RAdam": 2, "Adamax": 2, "Adadelta": 2, "Rprop": 2, "Adagrad": 1}


def optimizer_moments(optimizer: Optimizer) -> int:
    """Return how many tensors of a parameter's size the optimizer keeps for each; 2 for a class that is not known."""
    options = optimizer.defaults
    names = [base.__name__ for base in type(optimizer).__mro__]
    if "SGD" in names:
        return int(bool(options.get("momentum")))
    if "RMSprop" in names:
        return 1 + int(bool(options.get("momentum"))) + int(bool(options.get("centered")))
    return next((MOMENTS[name] for name in names if name in MOMENTS), 2) + int(bool(options.get("amsgrad")))


def missing_state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes that the optimizer's first step will add to what is held now."""
    moving = [each for group in optimizer.param_groups for each in group["params"] if each.requires_grad]
    fresh = [parameter for parameter in moving if not optimizer.state.get(parameter)]
    return optimizer_moments(optimizer) * sum(_local_bytes(parameter) for parameter in fresh)


def _local(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)  # a tensor sharded over processes has it
    return to_local() if to_local is not None else tensor


def _local_bytes(tensor: Tensor) -> int:
    return _local(tensor).nbytes


def _validation_cases(trainer: Trainer) -> int:
    return int(sum(batches for batches in trainer.num_val_batches if batches != float("inf")))


def _validation_runs(trainer: Trainer, passes: int) -> int:
    between = (trainer.val_check_batch or 0) * (trainer.check_val_every_n_epoch or 1)
    return int(passes / between) if between else 0
