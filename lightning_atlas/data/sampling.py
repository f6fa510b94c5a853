"""Which patch a sample is: a pure function of (seed, epoch, index)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
import torchio as tio
from jaxtyping import Bool, Float, Int8, Integer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchio.transforms import Compose, Transform

from lightning_atlas.data.cases import UNKNOWN
from lightning_atlas.data.prepare import Prepared
from lightning_atlas.types import Batch

ORDER, PATCH = 0, 1
"""Names of the streams of random numbers."""


class Sample(TypedDict):
    """One case of a batch; shapes as in `Batch`, without the batch axis."""

    image: Float[Tensor, "channels i j k"]
    label: Integer[Tensor, "i j k"]
    states: Int8[Tensor, "rows classes"]
    drawn: Bool[Tensor, "rows classes"]
    spacing_mm: Float[Tensor, "3"]
    affine: Float[Tensor, "4 4"]
    index: int
    subject: str


@dataclass(frozen=True)
class Opened:
    """A prepared case with its table in the recipe's classes."""

    subject: str
    prepared: Prepared
    states: Int8[np.ndarray, "rows classes"]
    drawn: Bool[np.ndarray, "rows classes"]

    def sample(
        self, image: Float[Tensor, "channels i j k"], label: Integer[Tensor, "i j k"], affine: np.ndarray, index: int
    ) -> Sample:
        """Return voxels of this case with all that belongs to them."""
        return {
            "image": image,
            "label": label.to(torch.int16),
            "states": torch.from_numpy(self.states),
            "drawn": torch.from_numpy(self.drawn),
            "spacing_mm": torch.tensor(np.linalg.norm(affine[:3, :3], axis=0), dtype=torch.float32),
            "affine": torch.tensor(affine, dtype=torch.float32),
            "index": index,
            "subject": self.subject,
        }


@dataclass(frozen=True)
class Patches:
    """What training sees of a scan at a time.

    Args:
        size: Voxels along i, j, k.
        per_epoch: Patches in an epoch, over all cases.
        foreground: Share of the patches that are centred on a structure, each class equally often; the others lie
            anywhere on the annotated planes.
    """

    size: tuple[int, int, int] = (64, 64, 64)
    per_epoch: int = 200
    foreground: float = 0.67

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.per_epoch < 1 or not 0 <= self.foreground <= 1:
            raise ValueError(f"patches need sizes and a number of at least 1 and a share from 0 to 1, not {self}")


class PatchDataset(Dataset[Sample]):
    """Patches of prepared cases; the item (epoch, index) is always the same patch, whoever asks and whenever."""

    def __init__(self, cases: Sequence[Opened], patches: Patches, augment: Sequence[Transform], seed: int) -> None:
        self.cases = list(cases)
        self.patches = patches
        self.augment = Compose(augment) if augment else None
        self.seed = seed

    def __len__(self) -> int:
        return self.patches.per_epoch

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)  # plain numbers: Lightning's overfit_batches
        position = self.case_of(epoch, index)
        case = self.cases[position]
        random = stream(self.seed, PATCH, epoch, index)
        start = self._start(case, random)
        image, label = crop(case.prepared, start, self.patches.size)
        affine = np.array(case.prepared.affine)
        affine[:3, 3] += affine[:3, :3] @ start
        if self.augment is not None:
            image, label = self._augmented(image, label, affine, seed=int(random.integers(2**63)))
        return case.sample(image, label, affine, position)

    def case_of(self, epoch: int, index: int) -> int:
        """Return the case of a sample: in each round every case comes once, in an order of its own."""
        around, place = divmod(index, len(self.cases))
        return int(stream(self.seed, ORDER, epoch, around).permutation(len(self.cases))[place])

    def _start(self, case: Opened, random: np.random.Generator) -> np.ndarray:
        size, shape = np.array(self.patches.size), np.array(case.prepared.shape)
        centre = self._centre(case, random)
        free = shape - size
        inside = np.clip(centre - size // 2, 0, np.maximum(free, 0))
        return np.where(free >= 0, inside, free // 2)

    def _centre(self, case: Opened, random: np.random.Generator) -> np.ndarray:
        counts = np.array(case.prepared.counts)
        wanted = (case.states == 1) & case.drawn & (counts > 0)[:, None]
        classes = np.flatnonzero(wanted.any(axis=0))
        if len(classes) and random.random() < self.patches.foreground:
            weights = np.where(wanted[:, random.choice(classes)], counts, 0)
            places = case.prepared.places(int(random.choice(len(counts), p=weights / weights.sum())))
            return np.array(places[random.integers(len(places))], dtype=np.int64)
        planes = case.prepared.planes or range(case.prepared.shape[2])
        return np.array([*random.integers(case.prepared.shape[:2]), planes[random.integers(len(planes))]])

    def _augmented(self, image: Tensor, label: Tensor, affine: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
        assert self.augment is not None
        subject = tio.Subject(
            image=tio.ScalarImage(tensor=image, affine=affine), label=tio.LabelMap(tensor=label[None], affine=affine)
        )
        with torch.random.fork_rng(devices=[]):  # TorchIO draws from torch's global generator only
            torch.default_generator.manual_seed(
                seed
            )  # `torch.manual_seed` would also seed the GPU, where dropout draws
            subject = self.augment(subject)
        return subject.get_image("image").data.float(), subject.get_image("label").data[0].round().to(label.dtype)


class WholeDataset(Dataset[Sample]):
    """Whole prepared cases."""

    def __init__(self, cases: Sequence[Opened]) -> None:
        self.cases = list(cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Sample:
        case = self.cases[index]
        start = np.zeros(3, dtype=np.int64)
        image, label = crop(case.prepared, start, case.prepared.shape)
        return case.sample(image, label, np.array(case.prepared.affine), index)


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return the random numbers of a key: the same for the same key in every process."""
    return np.random.default_rng(np.random.SeedSequence([seed, *key]))


def crop(
    prepared: Prepared, start: Integer[np.ndarray, "3"], size: tuple[int, int, int]
) -> tuple[Float[Tensor, "channels i j k"], Integer[Tensor, "i j k"]]:
    """Read a box of voxels; beyond the scan the image is its minimum and the label row 0."""
    low, high = np.maximum(start, 0), np.minimum(start + np.array(size), prepared.shape)
    source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    target = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    stored_image, stored_label = prepared.image(), prepared.label()
    image = np.full((stored_image.shape[0], *size), prepared.minimum, dtype=np.float32)
    label = np.full(size, UNKNOWN, dtype=np.int16)
    image[:, *target] = stored_image[:, *source]
    label[target] = stored_label[source]
    return torch.from_numpy(image), torch.from_numpy(label)


class AtlasSampler(DistributedSampler):
    """Yields (epoch, index), each rank its share of every global batch, and may start in the middle of an epoch.

    It is a `DistributedSampler` since Lightning leaves those alone and tells them the epoch.

    Args:
        dataset: The patches.
        batch_size: Patches in a step, over all ranks.
        rank: This process.
        ranks: Number of processes.
        epoch: The epoch in which to start.
        start: Batches of that epoch that were seen already.
    """

    def __init__(
        self, dataset: PatchDataset, batch_size: int, rank: int = 0, ranks: int = 1, epoch: int = 0, start: int = 0
    ) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank, shuffle=False, drop_last=True)
        if batch_size % ranks:
            raise ValueError(
                f"batch_size {batch_size} is that of all {ranks} devices together: make it a multiple of {ranks}"
            )
        self.batches = len(dataset) // batch_size
        if not self.batches:
            raise ValueError(
                f"an epoch of {len(dataset)} patches is less than a batch of {batch_size}; raise per_epoch"
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
    """Each rank its cases, none twice: ranks may have unequal numbers, as predictions may."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; shorter tables get rows that mean *unknown*."""
    rows = max(len(sample["states"]) for sample in samples)
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "label": torch.stack([sample["label"] for sample in samples]),
        "states": torch.stack([_longer(sample["states"], rows, -1) for sample in samples]),
        "drawn": torch.stack([_longer(sample["drawn"], rows, False) for sample in samples]),
        "spacing_mm": torch.stack([sample["spacing_mm"] for sample in samples]),
        "affine": torch.stack([sample["affine"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "subject": [sample["subject"] for sample in samples],
    }


def _longer(table: Tensor, rows: int, fill: int | bool) -> Tensor:
    longer = table.new_full((rows, table.shape[1]), fill)
    longer[: len(table)] = table
    return longer
