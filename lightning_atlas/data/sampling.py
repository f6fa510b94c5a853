"""In which order samples come, to which rank, and how they become batches."""

from collections.abc import Iterator, Sequence, Sized
from typing import cast

import torch
from lightning import Trainer
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_atlas.data.boxes import shifted
from lightning_atlas.data.cases import UNKNOWN
from lightning_atlas.data.patches import Sample
from lightning_atlas.types import Batch


class AtlasSampler(DistributedSampler):
    """Yields (epoch, index), each rank its share of every global batch, and may start in the middle of an epoch.

    It is a `DistributedSampler` since Lightning leaves those alone and tells them the epoch.

    Args:
        dataset: The patches, or pictures.
        batch_size: Patches in a step, over all ranks.
        rank: This process.
        ranks: Number of processes.
        epoch: The epoch in which to start.
        start: Batches of that epoch that were seen already.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, rank: int = 0, ranks: int = 1, epoch: int = 0, start: int = 0
    ) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank, shuffle=False, drop_last=True)
        if batch_size % ranks:
            raise ValueError(
                f"batch_size {batch_size} is that of all {ranks} devices together: make it a multiple of {ranks}"
            )
        samples = len(cast(Sized, dataset))
        self.batches = samples // batch_size
        if not self.batches:
            raise ValueError(
                f"an epoch of {samples} is less than a batch of {batch_size}; lower batch_size, or raise per_epoch"
            )
        self.batch_size = batch_size
        self.share = batch_size // ranks
        self.epoch, self.first_epoch, self.start = epoch, epoch, start

    def __len__(self) -> int:
        return self.batches * self.share

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start = self.start if self.epoch == self.first_epoch else 0
        for batch in range(start, self.batches):
            begin = batch * self.batch_size + self.rank * self.share
            yield from ((self.epoch, index) for index in range(begin, begin + self.share))


class PatchLoader(DataLoader[Batch]):
    """A loader that resumes: its position stands in Lightning's counters, so there is nothing to keep."""

    def state_dict(self) -> dict[str, int]:
        """Return nothing: the sampler is told where to start."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Read nothing."""


class ShareSampler(DistributedSampler):
    """Each rank its cases, none twice: ranks may have unequal numbers, as predictions may.

    Raises:
        ValueError: There are fewer cases than ranks. Lightning leaves out the whole loop of a rank that has none, for
            which the others would wait.
    """

    def __init__(self, dataset: Dataset, ranks: int, rank: int) -> None:
        super().__init__(dataset, ranks, rank, shuffle=False)
        cases = len(cast(Sized, dataset))
        if cases < ranks and ranks > 1:
            raise ValueError(f"{cases} cases for {ranks} processes: predict with --trainer.devices {max(cases, 1)}")

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


def position(trainer: Trainer | None, batches_per_epoch: int) -> tuple[int, int]:
    """Return the epoch in which a run goes on, and how many of its batches it has seen.

    Args:
        trainer: Of the run; `None` begins anew.
        batches_per_epoch: Without the trainer's own limit.
    """
    if trainer is None:
        return 0, 0
    limit = trainer.limit_train_batches
    batches = int(batches_per_epoch * limit) if isinstance(limit, float) else min(batches_per_epoch, limit)
    done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    return divmod(done, batches) if batches else (0, 0)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; shorter tables get rows that mean *unknown*, smaller patches a rim of the minimum and of row 0.

    Boxes are a list: images have unlike numbers of them.
    """
    samples = _of_one_size(samples)
    rows = max(len(sample["states"]) for sample in samples)
    batch: Batch = {
        "image": _stacked([sample["image"] for sample in samples], torch.float32),
        "label": _stacked([sample["label"] for sample in samples], torch.int16),
        "states": torch.stack([_longer(sample["states"], rows, -1) for sample in samples]),
        "drawn": torch.stack([_longer(sample["drawn"], rows, False) for sample in samples]),
        "background": torch.stack([_longer(sample["background"], rows, -1) for sample in samples]),
        "spacing_mm": torch.stack([sample["spacing_mm"] for sample in samples]),
        "affine": torch.stack([sample["affine"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "subject": [sample["subject"] for sample in samples],
        "seed": torch.tensor([sample["seed"] for sample in samples]),
    }
    if all("target" in sample for sample in samples):
        batch["target"] = torch.stack([torch.as_tensor(sample.get("target")) for sample in samples])
    if boxes := [sample["boxes"] for sample in samples if "boxes" in sample]:
        batch["boxes"] = boxes
    return batch


def _stacked(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    # half precision, as stored, becomes single on the way into the batch
    stacked = torch.empty((len(parts), *parts[0].shape), dtype=dtype)
    for place, part in zip(stacked, parts, strict=True):
        place.copy_(part)
    return stacked


def _of_one_size(samples: Sequence[Sample]) -> Sequence[Sample]:
    sizes = torch.tensor([sample["label"].shape for sample in samples])
    largest = sizes.amax(0)
    return [
        sample if torch.equal(size, largest) else _wider(sample, (largest - size) // 2, largest - size)
        for sample, size in zip(samples, sizes, strict=True)
    ]


def _wider(sample: Sample, before: Tensor, all_round: Tensor) -> Sample:
    rim = [each for low, both in zip(before.tolist(), all_round.tolist(), strict=True) for each in (both - low, low)]
    rim.reverse()  # torch counts the last axis first
    affine = sample["affine"].clone()
    affine[:3, 3] -= affine[:3, :3] @ before.to(affine)
    image = pad(sample["image"], rim, value=float(sample["image"].min()))
    wider: Sample = {**sample, "image": image, "label": pad(sample["label"], rim, value=UNKNOWN), "affine": affine}
    if "boxes" in sample:
        wider["boxes"] = shifted(sample["boxes"], before.tolist())
    return wider


def _longer(table: Tensor, rows: int, fill: int | bool) -> Tensor:
    longer = table.new_full((rows, *table.shape[1:]), fill)
    longer[: len(table)] = table
    return longer
