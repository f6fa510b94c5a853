"""The data module for photographs: decoded when they are asked for, never turned, three colours or three slices."""

from collections.abc import Sequence
from functools import cached_property
from textwrap import shorten
from typing import NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Sampler
from torchio.transforms import Transform
from torchio.transforms.augmentation import RandomTransform

from lightning_atlas.contract import Contract, side_pairs
from lightning_atlas.data.augmentation.pictures import CentreCrop, check_picture_transforms
from lightning_atlas.data.augmentation.slices import colours_are_slices
from lightning_atlas.data.cases import Case, Source, Split
from lightning_atlas.data.listing import list_cases
from lightning_atlas.data.module import SPLITS
from lightning_atlas.data.picture_sets import BoxLists, PictureBatches, Pictures, Texts, TrainingPictures, WholePictures
from lightning_atlas.data.pipeline import flat, mirrored_axes
from lightning_atlas.data.sampling import AtlasSampler, PatchLoader, ShareSampler, position
from lightning_atlas.data.sources.numbered import Numbered
from lightning_atlas.data.sources.splits import Splits
from lightning_atlas.data.targets import Targets
from lightning_atlas.types import Batch

MEAN, DEVIATION = 114.495, 57.63
"""Of the bytes of ImageNet: means over the colours of 123.675, 116.28, 103.53 and of 58.395, 57.12, 57.375."""
COLOURS = ("red", "green", "blue")
NOTE = 240
"""Letters of a line on the files; it may name a thousand classes."""


class Listing(NamedTuple):
    """The pictures of one split, in little memory."""

    files: Texts
    subjects: Texts
    patients: Texts
    datasets: Texts
    targets: Tensor | None
    boxes: BoxLists | None


class Listed(NamedTuple):
    """All pictures of a source, with what its numbers of classes are called, and what was noted of its files."""

    splits: dict[Split, Listing]
    names: tuple[str, ...]
    modality: str
    notes: Sequence[str]


class PictureDataModule(LightningDataModule):
    """Photographs as batches; each is decoded when its turn comes, so nothing is prepared and no copy is kept on disk.

    A picture is upright and in red, green and blue: `(3, i, j, 1)`, columns along i and rows along j (LPS), and never
    turned. `ColoursToSlices` makes it a volume of one channel and three slices.

    Args:
        source: Lists the pictures: `ScanLayout` (a folder for each class, or COCO's JSON), `Manifest`, `Mixture`.
        targets: What is to be predicted of whole pictures; `null` takes the class by the name of the folder. Without a
            table, classes that the source names go by these names.
        boxes: Boxes are to be predicted, those of the source, instead of anything of whole pictures.
        classes: Names of the classes in the order of the network's outputs. Those that the source names go by their
            names, so the order is free and some may have no picture; numbers without names count in it from 0. `null`
            takes the source's, or the names of `targets`.
        augment: Transforms of training pictures, of TorchIO and of ours: `RandomResizedCrop`, `RandomCrop`,
            `RandomResizePicture`, `RandomFlip`, `RandomColoursToSlices`.
        evaluate: Transforms of all others, of which none may draw: `ResizePicture`, `CentreCrop`, `ColoursToSlices`.
        mean: Is subtracted from the bytes of every plane, one for all: they are slices of one modality.
        deviation: Divides them then.
        batch_size: Pictures in a step, over all devices together.
        evaluation_batch_size: Pictures at once elsewhere; `null` takes as many, or one where boxes are predicted or
            pictures are of several sizes.
        per_epoch: Pictures in an epoch; `null` takes every one once.
        num_workers: Processes that decode; the pictures do not depend on it.
        seed: Another seed gives another order and other augmentation.
        splits: Divides the pictures by patient, where the source does not say how.
        fold: Which of the folds of `splits` is validated on.
        keep_mib: Decoded pictures of a split are kept in memory, if all of them take no more than so many MiB.
    """

    def __init__(  # noqa: PLR0913 - each is a line of a recipe
        self,
        source: Source,
        targets: Targets | None = None,
        boxes: bool = False,
        classes: list[str] | None = None,
        augment: list[Transform] | None = None,
        evaluate: list[Transform] | None = None,
        mean: float = MEAN,
        deviation: float = DEVIATION,
        batch_size: int = 256,
        evaluation_batch_size: int | None = None,
        per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        splits: Splits | None = None,
        fold: int | None = None,
        keep_mib: float = 1024.0,
    ) -> None:
        super().__init__()
        if boxes and targets is not None:
            raise ValueError("PictureDataModule predicts boxes or targets of whole pictures: leave one of them out")
        if targets is not None and classes:
            raise ValueError("PictureDataModule: targets name the classes, so leave data.init_args.classes out")
        if classes and len(set(classes)) < len(classes):
            raise ValueError(f"PictureDataModule: classes names each class once; found {', '.join(classes)}")
        if deviation <= 0:
            raise ValueError(f"PictureDataModule: deviation divides, so it is above 0; found {deviation}")
        self.source = source
        self.targets = targets
        self.boxes = boxes
        self.classes = classes
        self.augment = augment or []
        self.evaluate = evaluate or []
        self.mean, self.deviation = mean, deviation
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size or (1 if boxes else None)
        self.per_epoch = per_epoch
        self.num_workers = num_workers
        self.seed = seed
        self.splits = splits
        self.fold = fold
        self.keep_mib = keep_mib
        self.opened: dict[Split, Pictures] = {}
        check_picture_transforms(self.augment, boxes, "augment")
        check_picture_transforms(self.evaluate, boxes, "evaluate")
        check_certain(self.evaluate)

    @cached_property
    def listed(self) -> Listed:
        """All pictures, with their splits; none is opened.

        Raises:
            ValueError: There is none, nobody says what their classes are called, or one has a class of another name.
        """
        if self.targets is not None and not self.targets.numbered:
            cases, names, notes = list_cases(self.source, self.splits, self.fold), tuple(self.targets.names), []
        else:
            source = Numbered(self.source, self.targets.names if self.targets else self.classes)
            cases = list_cases(source, self.splits, self.fold)
            names, notes = source.names, source.notes
        targets = None if self.boxes else self.targets or self._by_folder(names, cases)
        known = {} if targets is None else targets.of(cases)
        splits: dict[Split, Listing] = {}
        present: list[Split] = list(dict.fromkeys(case.split for case in cases))
        for split in present:
            some = [case for case in cases if case.split == split]
            splits[split] = Listing(
                Texts(_file(case) for case in some),
                Texts(case.subject for case in some),
                Texts(case.patient or case.subject for case in some),
                Texts(case.dataset or "unnamed" for case in some),
                None if targets is None else torch.stack([known[case.subject] for case in some]),
                BoxLists(case.boxes for case in some) if self.boxes else None,
            )
        modality = self.source.modality or next((case.modality for case in cases if case.modality), "photograph")
        return Listed(splits, self._checked(names, splits), modality, notes)

    def _by_folder(self, names: Sequence[str], cases: Sequence[Case]) -> Targets:
        if len(names) > 1:
            return Targets("class", list(names))
        if any(case.boxes for case in cases) and not any(case.target is not None for case in cases):
            raise ValueError(f"{self.source.description} have boxes and no classes of whole pictures: set boxes: true")
        if names:
            raise ValueError(
                f"{self.source.description}: there is one class, {names[0]}, and to tell classes apart takes two: a "
                "folder for each, CLASS/NAME.png, perhaps in train, val and test"
            )
        raise ValueError(
            f"{self.source.description}: nothing says what the classes are called: set data.init_args.classes: "
            "[cat, dog], or data.init_args.targets"
        )

    def _checked(self, names: tuple[str, ...], splits: dict[Split, Listing]) -> tuple[str, ...]:
        most = max((each.boxes.most for each in splits.values() if each.boxes), default=-1)
        if most >= len(names) or not names:
            raise ValueError(
                f"{self.source.description}: the classes of boxes go up to {most}, and {len(names)} have names: set "
                "data.init_args.classes: [person, bicycle], in the order of the numbers from 0"
            )
        return names

    @cached_property
    def contract(self) -> Contract:
        """What a network trained on these batches expects of an image.

        Raises:
            ValueError: Colours are slices in training and channels elsewhere, or the other way round; or training
                mirrors, and two classes are each other's mirror image by name.
        """
        bytes_ = (0.0, 255.0)
        low, high = ((each - self.mean) / self.deviation for each in bytes_)
        contract = Contract(
            classes=self.listed.names,
            modality=self.listed.modality,
            orientation="LPS",
            normalization="linear",
            window=bytes_,
            range=(low, high),
            channels=("image",) if self._sliced() else COLOURS,
            mirrored_axes=mirrored_axes(self.augment, "LPS"),
            predicts="boxes" if self.boxes else "class",
        )
        if self.targets is not None:
            return self.targets.stated(contract)
        if contract.mirrored_axes and (pairs := side_pairs(contract.classes)):
            one, other = (contract.classes[place] for place in pairs[0])
            raise ValueError(
                f"augment mirrors along {', '.join(contract.mirrored_axes)}, and a mirrored {one} would keep its name, "
                f"though {other} is a class too: mirror no axis"
            )
        return contract

    def _sliced(self) -> bool:
        seen = {"augment": self.augment} if "train" in self.listed.splits else {}
        seen |= {"evaluate": self.evaluate} if set(self.listed.splits) - {"train"} else {}
        return colours_are_slices(seen)

    def prepare_data(self) -> None:
        """Say what is unusual in the files; nothing is prepared."""
        for note in self.listed.notes:
            print(f"note: {shorten(note, NOTE, placeholder=' ...')}")

    @property
    def batches_per_epoch(self) -> int:
        """Steps in an epoch, whatever the number of devices."""
        return (self.per_epoch or len(self._listing("train").files)) // self.batch_size

    def describe(self) -> str:
        """One line for reports: what the numbers were measured on."""
        counts = " + ".join(f"{len(each.files)} {split}" for split, each in self.listed.splits.items())
        names = self.listed.names
        shown = ", ".join(names) if len(names) <= 12 else f"{len(names)} classes"
        predicted = f"boxes ({shown})" if self.boxes else f"{self.contract.predicts} of each picture ({shown})"
        divided = f", {self.splits.description}" if self.splits else ""
        return f"{self.source.description}{divided}, {counts}; {predicted}; LPS; {self.batch_size} a step"

    def setup(self, stage: str | None = None) -> None:
        """Open the pictures of a stage; without a stage, of all."""
        for split in self._wanted(stage):
            self._open(split)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return training pictures; after a resume they go on where they stopped."""
        pictures = self._open("train")
        dataset = TrainingPictures(pictures, self.per_epoch or len(pictures), self.augment, self.seed)
        rank, ranks = self._rank()
        epoch, start = position(self.trainer, self.batches_per_epoch)
        sampler = AtlasSampler(dataset, self.batch_size, rank, ranks, epoch, start)
        return self._loader(dataset, sampler, sampler.share, PatchLoader)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return the validation pictures, or nothing where the source has none."""
        return self._whole_loader("val") if self.has("val") else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test pictures."""
        return self._whole_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the pictures to predict on; the test pictures, if the source has none for it."""
        dataset = WholePictures(self._open(self._predicted), self.evaluate)
        rank, ranks = self._rank()
        return self._loader(dataset, ShareSampler(dataset, ranks, rank), self._share(dataset, ranks))

    def subjects(self, split: Split) -> list[str]:
        """Return the names of a split's pictures, in the order of their `index`."""
        return list(self._listing(self._told(split)).subjects) if self.has(split) else []

    def patients(self, split: Split) -> list[str]:
        """Return whose each of a split's pictures is, in the order of their `index`."""
        return list(self._listing(self._told(split)).patients) if self.has(split) else []

    def datasets(self, split: Split) -> list[str]:
        """Return the dataset of each of a split's pictures, in the order of their `index`."""
        return list(self._listing(self._told(split)).datasets) if self.has(split) else []

    def has(self, split: Split) -> bool:
        """Tell whether there are pictures in a split."""
        return self._told(split) in self.listed.splits

    def whole(self, split: Split, n: int) -> Batch:
        """Return one picture, as it is scored, as a batch."""
        pictures = self._open(self._told(split))
        return PictureBatches(pictures, self.mean, self.deviation, alike=True)(
            [WholePictures(pictures, self.evaluate)[n]]
        )

    @property
    def _predicted(self) -> Split:
        return "predict" if "predict" in self.listed.splits else "test"

    def _told(self, split: Split) -> Split:
        return self._predicted if split == "predict" else split

    def _wanted(self, stage: str | None) -> tuple[Split, ...]:
        stage = stage or (self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else None)
        wanted = [self._told(each) for each in SPLITS[stage]] if stage else list(self.listed.splits)
        return tuple(split for split in wanted if split in self.listed.splits)

    def _listing(self, split: Split) -> Listing:
        if split not in self.listed.splits:
            has = ", ".join(sorted(self.listed.splits))
            raise ValueError(
                f"{self.source.description}: no picture stands in {split}; there are pictures in {has}"
                + ("; the verb validate scores those of val" if split == "test" and "val" in has else "")
            )
        return self.listed.splits[split]

    def _open(self, split: Split) -> Pictures:
        if split not in self.opened:
            listing = self._listing(split)
            targets, boxes = listing.targets, listing.boxes
            self.opened[split] = Pictures(listing.files, listing.subjects, targets, boxes, int(self.keep_mib * 2**20))
        return self.opened[split]

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _share(self, dataset: WholePictures, ranks: int) -> int:
        wanted = self.evaluation_batch_size
        if wanted is None:
            alike = any(isinstance(each, CentreCrop) for each in flat(self.evaluate)) or dataset.pictures.alike
            wanted = self.batch_size if alike else 1
        return max(1, wanted // ranks)

    def _whole_loader(self, split: Split) -> DataLoader[Batch]:
        dataset = WholePictures(self._open(split), self.evaluate)
        rank, ranks = self._rank()
        sampler = DistributedSampler(dataset, ranks, rank, shuffle=False)  # repeats some, which `index` tells apart
        return self._loader(dataset, sampler, self._share(dataset, ranks))

    def _loader(
        self,
        dataset: TrainingPictures | WholePictures,
        sampler: Sampler,
        batch_size: int,
        kind: type[DataLoader] = DataLoader,
    ) -> DataLoader[Batch]:
        alike = isinstance(dataset, WholePictures)
        return kind(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=PictureBatches(dataset.pictures, self.mean, self.deviation, alike),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator().manual_seed(self.seed),  # the loader must not draw from the global one
        )


def check_certain(evaluate: Sequence[Transform]) -> None:
    """Refuse what is random where pictures are scored.

    Raises:
        ValueError: Names the transform.
    """
    for each in flat(evaluate):
        if isinstance(each, RandomTransform) or each.probability < 1:
            raise ValueError(f"evaluate: {type(each).__name__} draws at random; move it to augment")


def _file(case: Case) -> str:
    files = list(case.channels.values())
    if len(files) > 1:
        raise ValueError(f"{case.subject} has {len(files)} files, and a picture is one: {', '.join(map(str, files))}")
    return str(files[0])
