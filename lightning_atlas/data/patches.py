"""What a patch is: a pure function of (seed, epoch, index)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import torch
import torchio as tio
from jaxtyping import Bool, Float, Int8, Integer
from torch import Tensor
from torch.utils.data import Dataset
from torchio.transforms import Compose, Transform

from lightning_atlas.data.boxes import follow, meeting, middle_of_some, shifted
from lightning_atlas.data.cases import UNKNOWN
from lightning_atlas.data.labels.classes import ClassMap, Table
from lightning_atlas.data.store.prepare import Prepared, open_store
from lightning_atlas.types import Boxes

Cut = Callable[[int, tuple[int, int, int], Float[np.ndarray, "3"]], tuple[int, int, int]]
Find = Callable[[Prepared, Table], Boxes]
Seen = Callable[[Boxes, Sequence[int]], Boxes]
ORDER, PATCH = 0, 1
"""Names of the streams of random numbers."""


class Sample(TypedDict):
    """One case of a batch; shapes as in `Batch`, without the batch axis."""

    image: Float[Tensor, "channels i j k"]
    label: Integer[Tensor, "i j k"]
    states: Int8[Tensor, "rows classes"]
    drawn: Bool[Tensor, "rows classes"]
    background: Int8[Tensor, " rows"]
    spacing_mm: Float[Tensor, "3"]
    affine: Float[Tensor, "4 4"]
    index: int
    subject: str
    seed: int
    target: NotRequired[int | float | Tensor]
    boxes: NotRequired[Boxes]


@dataclass(frozen=True)
class Opened:
    """A prepared case with what takes its table to the recipe's classes.

    Args:
        subject: Its name.
        folder: Of its store.
        classes: Of the recipe.
        vocabulary: What the case's own names mean.
        dataset: Of which dataset it is.
        target: Of the whole scan, as in `Batch`.
        tables: Tables made so far; cases of one dataset often share one.
        find: Finds its boxes, where boxes are wanted of it.
    """

    subject: str
    folder: Path
    classes: ClassMap
    vocabulary: str | None
    dataset: str
    target: int | float | Mapping[str, Any] | Tensor | None
    tables: dict[tuple[str, str | None], Table]
    find: Find | None = None

    @property
    def prepared(self) -> Prepared:
        """The case on disk; what its store says of itself is not kept for each of many subjects."""
        return open_store(self.folder)

    @property
    def is_known(self) -> bool:
        """Tell whether anything is known of the scan as a whole, as `Targets` has it."""
        target = torch.as_tensor(self.target)
        return bool((~target.isnan() if target.is_floating_point() else target >= 0).any())

    @cached_property
    def boxes(self) -> Boxes | None:
        """Its boxes, whole even where they reach beyond the scan; `None` where none are wanted."""
        return None if self.find is None else self.find(self.prepared, self.table)

    @cached_property
    def table(self) -> Table:
        """What its rows say of the recipe's classes.

        Raises:
            ValueError: A row is in two classes that exclude each other.
        """
        key = self.prepared.digest, self.vocabulary
        if key not in self.tables:
            states, drawn = self.prepared.table()
            table = self.classes.table(states, drawn, self.prepared.names, self.vocabulary)
            for first, second in self.classes.conflicts(table.states):
                raise ValueError(
                    f"{self.subject}: {first} and {second} overlap, but each voxel may be in one class; leave one out, "
                    "or let classes overlap (sigmoid): data.init_args.classes: {class_path: Classes, init_args: "
                    "{names: ..., exclusive: false}}"
                )
            self.tables[key] = table
        return self.tables[key]

    def sample(
        self,
        image: Float[Tensor, "channels i j k"],
        label: Integer[Tensor, "i j k"],
        affine: np.ndarray,
        index: int,
        seed: int = 0,
        boxes: Boxes | None = None,
    ) -> Sample:
        """Return voxels of this case with all that belongs to them."""
        sample: Sample = {
            "image": image,
            "label": label,
            "states": torch.from_numpy(self.table.states),
            "drawn": torch.from_numpy(self.table.drawn),
            "background": torch.from_numpy(self.table.background),
            "spacing_mm": torch.tensor(np.linalg.norm(affine[:3, :3], axis=0), dtype=torch.float32),
            "affine": torch.tensor(affine, dtype=torch.float32),
            "index": index,
            "subject": self.subject,
            "seed": seed,
        }
        if isinstance(self.target, int | float | Tensor):  # a source's own table of names is for `Targets` to read
            sample["target"] = self.target
        if boxes is not None:
            sample["boxes"] = boxes
        return sample


@dataclass(frozen=True)
class Patches:
    """What training sees of a scan at a time.

    Args:
        size: Voxels along i, j, k.
        per_epoch: Patches in an epoch, over all cases.
        foreground: Share of the patches that are centred on a structure.
        balance: Which structure that is: `class`, each class of the case equally often; `rare`, each class of all the
            cases equally often, so that cases with rare ones come more often; `voxel`, each voxel equally often. Where
            boxes are wanted, a patch is centred on the middle of one.
        anywhere: Where the others lie: `centre`, about each voxel that somebody decided on equally often, and moved to
            the scan's face where they would reach beyond it, so that its rim is seen, too; `place`, at each place
            inside the scan equally often, whatever was decided there, as crops shift that are almost the whole scan.
        jitter: The centre moves at random by up to this share of half a side.
        margin: Voxels along i, j, k that are cut on each side for transforms that turn, and cropped after them.
        shares: Dataset -> its share of the patches; `null` takes every case equally often.
    """

    size: tuple[int, int, int] = (64, 64, 64)
    per_epoch: int = 200
    foreground: float = 0.67
    balance: Literal["class", "rare", "voxel"] = "class"
    anywhere: Literal["centre", "place"] = "centre"
    jitter: float = 0.0
    margin: tuple[int, int, int] = (0, 0, 0)
    shares: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.per_epoch < 1 or not 0 <= self.foreground <= 1:
            raise ValueError(f"patches need sizes and a number of at least 1 and a share from 0 to 1, not {self}")
        if not 0 <= self.jitter <= 1 or min(self.margin) < 0:
            raise ValueError(f"patches: jitter is a share from 0 to 1 and margin is not negative, found {self}")
        if self.shares is not None and not (self.shares and min(self.shares.values()) > 0):
            raise ValueError(f"patches: shares need a number above 0 for each dataset, found {self.shares}")

    @property
    def cut(self) -> tuple[int, int, int]:
        """Voxels that are read, margins included."""
        i, j, k = (size + 2 * margin for size, margin in zip(self.size, self.margin, strict=True))
        return i, j, k


class PatchDataset(Dataset[Sample]):
    """Patches of prepared cases; the item (epoch, index) is always the same patch, whoever asks and whenever.

    Args:
        cases: The prepared cases.
        patches: Where and how large.
        augment: Transforms of each patch.
        seed: Another seed gives other patches.
        cut: Tells how many voxels a sample (by its seed, the patch's size and the spacing) needs, where a transform on
            the device crops them later.
        context: Voxels at each face of a patch of which the network says nothing; they may lie outside the scan.
        seen: Returns what is asked of a patch of some size of the boxes that lie there, where boxes are wanted.
    """

    def __init__(
        self,
        cases: Sequence[Opened],
        patches: Patches,
        augment: Sequence[Transform] = (),
        seed: int = 0,
        cut: Cut | None = None,
        context: int = 0,
        seen: Seen = meeting,
    ) -> None:
        self.cases = list(cases)
        self.patches = patches
        self.augment = Compose(augment) if augment else None
        self.seed = seed
        self.cut = cut
        self.seen = seen
        self.inner = np.maximum(np.array(patches.size) - 2 * context, 1)
        self.crops_here = cut is None and any(patches.margin)
        if strange := sorted(set(patches.shares or ()) ^ {case.dataset for case in cases} if patches.shares else ()):
            raise ValueError(
                f"patches: shares must name the datasets of the training cases; check {', '.join(strange)}"
            )

    def __len__(self) -> int:
        return self.patches.per_epoch

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)  # plain numbers: Lightning's overfit_batches
        random = stream(self.seed, PATCH, epoch, index)
        position, chosen = self.case_of(epoch, index), None
        if self.patches.balance == "rare" and random.random() < self.patches.foreground:
            chosen = int(random.choice(self.drawn_classes))
            position = int(random.choice(self.holders[chosen]))
        case = self.cases[position]
        centre, seed = self._centre(case, random, chosen), int(random.integers(2**63))
        size = self.cut(seed, self.patches.size, spacing_mm(case)) if self.cut else self.patches.cut
        start = self._start(case, centre, size)
        image, label = crop(case.prepared, start, size)
        boxes = None if case.boxes is None else shifted(case.boxes, -start)
        if self.augment is not None:
            image, label, boxes = self._augmented(image, label, boxes, self._affine(case, start), seed)
        if self.crops_here:
            inner = tuple(slice(m, m + size) for m, size in zip(self.patches.margin, self.patches.size, strict=True))
            image, label, start = image[:, *inner], label[inner], start + self.patches.margin
            boxes = None if boxes is None else shifted(boxes, [-margin for margin in self.patches.margin])
        boxes = None if boxes is None else (meeting if self.cut else self.seen)(boxes, label.shape)
        return case.sample(image, label, self._affine(case, start), position, seed, boxes)

    def case_of(self, epoch: int, index: int) -> int:
        """Return the case of a sample: in each round every case comes once, in an order of its own."""
        if self.patches.shares:
            dataset, place = self.turns[index]
            members = [n for n, case in enumerate(self.cases) if case.dataset == dataset]
            around, place = divmod(place, len(members))
            number = sorted(self.patches.shares).index(dataset)
            return members[int(stream(self.seed, ORDER, epoch, around, number).permutation(len(members))[place])]
        around, place = divmod(index, len(self.cases))
        return int(stream(self.seed, ORDER, epoch, around).permutation(len(self.cases))[place])

    @cached_property
    def turns(self) -> list[tuple[str, int]]:
        """For each sample of an epoch the dataset whose turn it is, and how often it came before."""
        shares = self.patches.shares or {}
        whole = sum(shares.values())
        came, order = dict.fromkeys(sorted(shares), 0), []
        for number in range(self.patches.per_epoch):
            behind = {name: shares[name] / whole * (number + 1) - count for name, count in came.items()}
            name = max(behind, key=behind.__getitem__)
            order.append((name, came[name]))
            came[name] += 1
        return order

    @cached_property
    def holders(self) -> Mapping[int, list[int]]:
        """Class -> the cases in which it is drawn and present."""
        found: dict[int, list[int]] = {}
        for number, case in enumerate(self.cases):
            drawn = np.flatnonzero(wanted_rows(case).any(axis=0)) if case.boxes is None else case.boxes.classes.unique()
            for each in drawn:
                found.setdefault(int(each), []).append(number)
        return found

    @cached_property
    def drawn_classes(self) -> list[int]:
        """The classes that are drawn and present in some case."""
        if not self.holders:
            raise ValueError("patches: balance: rare needs training cases in which some class is drawn")
        return sorted(self.holders)

    def _start(
        self, case: Opened, centre: Integer[np.ndarray, "3"], size: tuple[int, int, int]
    ) -> Integer[np.ndarray, "3"]:
        """Return where to cut: what a network speaks of lies inside the scan; what is needed around it may not."""
        inner, shape = self.inner, np.array(case.prepared.shape)
        free = shape - inner
        inside = np.clip(centre - inner // 2, 0, np.maximum(free, 0))
        return np.where(free >= 0, inside, free // 2) - (np.array(size) - inner) // 2

    def _centre(self, case: Opened, random: np.random.Generator, chosen: int | None) -> Integer[np.ndarray, "3"]:
        centre = self._place(case, random, chosen)
        if self.patches.jitter:
            reach = self.patches.jitter * self.inner / 2
            centre = centre + np.trunc(random.uniform(-reach, reach)).astype(np.int64)
        return centre

    def _place(self, case: Opened, random: np.random.Generator, chosen: int | None) -> Integer[np.ndarray, "3"]:
        counts = np.array(case.prepared.counts)
        wanted = wanted_rows(case)
        classes = np.flatnonzero(wanted.any(axis=0)) if case.boxes is None else case.boxes.classes
        settled = self.patches.balance == "rare"
        if chosen is not None or (len(classes) and not settled and random.random() < self.patches.foreground):
            if case.boxes is not None:
                return middle_of_some(case.boxes, self.patches.balance, chosen, random)
            rows = wanted.any(axis=1)
            if self.patches.balance != "voxel":
                rows = wanted[:, random.choice(classes) if chosen is None else chosen]
            weights = np.where(rows, counts, 0)
            places = case.prepared.places(int(random.choice(len(counts), p=weights / weights.sum())))
            return np.array(places[random.integers(len(places))], dtype=np.int64)
        if self.patches.anywhere == "place":
            free = np.maximum(np.array(case.prepared.shape) - self.inner, 0)
            return random.integers(free + 1) + self.inner // 2
        if len(observed := case.prepared.observed()):
            return np.array(observed[random.integers(len(observed))], dtype=np.int64)
        return random.integers(case.prepared.shape)

    def _affine(self, case: Opened, start: Integer[np.ndarray, "3"]) -> np.ndarray:
        affine = np.array(case.prepared.affine)
        affine[:3, 3] += affine[:3, :3] @ start
        return affine

    def _augmented(
        self, image: Tensor, label: Tensor, boxes: Boxes | None, affine: np.ndarray, seed: int
    ) -> tuple[Tensor, Tensor, Boxes | None]:
        assert self.augment is not None
        subject = tio.Subject(
            image=tio.ScalarImage(tensor=image.float(), affine=affine),
            label=tio.LabelMap(tensor=label[None], affine=affine),
        )
        with torch.random.fork_rng(devices=[]):  # TorchIO draws from torch's global generator only
            # `torch.manual_seed` would also seed the GPU, where dropout draws
            torch.default_generator.manual_seed(seed)
            moved = self.augment(subject)
        if boxes is not None:
            i, j, k = label.shape
            boxes, _ = follow(boxes, moved, (i, j, k), affine)
        rows = moved.get_image("label").data[0].round().to(label.dtype)
        return moved.get_image("image").data.float(), rows, boxes


class WholeDataset(Dataset[Sample]):
    """Whole prepared cases.

    Args:
        cases: The prepared cases.
        seen: As of `PatchDataset`.
    """

    def __init__(self, cases: Sequence[Opened], seen: Seen = meeting) -> None:
        self.cases = list(cases)
        self.seen = seen

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Sample:
        case = self.cases[index]
        start = np.zeros(3, dtype=np.int64)
        image, label = crop(case.prepared, start, case.prepared.shape)
        boxes = None if case.boxes is None else self.seen(case.boxes, case.prepared.shape)
        return case.sample(image, label, np.array(case.prepared.affine), index, boxes=boxes)


def wanted_rows(case: Opened) -> Bool[np.ndarray, "rows classes"]:
    """Tell which rows that occur are in which class by somebody's decision."""
    occurs = np.array(case.prepared.counts) > 0
    return (case.table.states == 1) & case.table.drawn & occurs[:, None]


def spacing_mm(case: Opened) -> Float[np.ndarray, "3"]:
    """Return the voxel size along i, j, k."""
    return np.linalg.norm(np.array(case.prepared.affine)[:3, :3], axis=0)


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return the random numbers of a key: the same for the same key in every process."""
    return np.random.default_rng(np.random.SeedSequence([seed, *key]))


def crop(
    prepared: Prepared, start: Integer[np.ndarray, "3"], size: tuple[int, int, int]
) -> tuple[Float[Tensor, "channels i j k"], Integer[Tensor, "i j k"]]:
    """Read a box of voxels as stored; beyond the scan the image is its minimum and the label row 0."""
    low, high = np.maximum(start, 0), np.minimum(start + np.array(size), prepared.shape)
    source = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    image = torch.from_numpy(prepared.image())[:, *source].clone()  # the map is shared: nobody may write to it
    label = torch.from_numpy(prepared.label())[source].to(torch.int16, copy=True)
    if label.shape == size:
        return image, label
    target = tuple(slice(a, b) for a, b in zip((low - start).tolist(), (high - start).tolist(), strict=True))
    whole_image = image.new_full((len(image), *size), prepared.minimum)
    whole_label = label.new_full(size, UNKNOWN)
    whole_image[:, *target], whole_label[target] = image, label
    return whole_image, whole_label
