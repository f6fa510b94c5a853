"""The data module: from a list of cases to batches and back to the files' own grids."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
from jaxtyping import Integer
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler
from torchio.transforms import Transform

from lightning_atlas.contract import Contract, side_pairs
from lightning_atlas.data.adoption import adopt_preprocessing
from lightning_atlas.data.augmentation.augment import BatchAugmentation
from lightning_atlas.data.augmentation.slices import colours_are_slices
from lightning_atlas.data.box_targets import BoxTargets
from lightning_atlas.data.boxes import check_carrying, meeting
from lightning_atlas.data.cases import Case, Source, Split
from lightning_atlas.data.labels.classes import Classes, ClassMap, Table, match_classes
from lightning_atlas.data.listing import list_cases, shared_channels
from lightning_atlas.data.native import FileReference, ceilings, file_reference
from lightning_atlas.data.notes import not_taught, taken_for_whole, unusual_files
from lightning_atlas.data.patches import Opened, PatchDataset, Patches, Sample, Seen, WholeDataset
from lightning_atlas.data.pipeline import derive_contract, flat
from lightning_atlas.data.sampling import AtlasSampler, PatchLoader, ShareSampler, collate, position
from lightning_atlas.data.seen import described, measured, united
from lightning_atlas.data.sources.numbered import Numbered
from lightning_atlas.data.sources.splits import PlaneSplit, Splits
from lightning_atlas.data.store.keys import store_root
from lightning_atlas.data.store.prepare import prepare_all
from lightning_atlas.data.store.restore import to_file_grid
from lightning_atlas.data.targets import Targets
from lightning_atlas.types import Batch

SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class ScanDataModule(LightningDataModule):
    """Scans as batches: prepared once, cut into patches for training, whole for everything else.

    Args:
        source: Lists the scans: `ScanLayout` (a dataset's folder), `Manifest`, `ScanFolder`, `ScanTable`, `Mixture`,
            `EmbeddedScan`, `SimulatedCohort`.
        classes: What the network tells apart: class -> names (or patterns such as `rib_*`) in the dataset, merged.
            `null` makes each name a class, and with `targets` none. `Classes` says more: whether they may overlap,
            which to assume equal.
        preprocess: TorchIO transforms that bring every scan to the network's geometry and intensities; done once.
        augment: TorchIO transforms of training patches, or a `BatchAugmentation` on the device.
        patches: What training sees at a time.
        batch_size: Patches in a step, over all devices together.
        num_workers: Processes that cut patches; the patches do not depend on it.
        seed: Another seed gives other patches.
        splits: Divides subjects by patient, where the source does not say how; `PlaneSplit` divides one scan.
        fold: Which of the folds of `splits` is validated on; the others are trained on.
        targets: What is to be predicted of whole scans, for `Classification`, `MultiLabelClassification` and
            `Regression`; `null` where voxels are. Scans of which nothing is known are not trained on.
        boxes: What is to be found in scans, for `Detection`: `LabelBoxes` (about what was drawn), `SourceBoxes`,
            `WorldBoxes`.
    """

    def __init__(  # noqa: PLR0913 - each is a line of a recipe
        self,
        source: Source,
        classes: dict[str, list[str]] | Classes | None = None,
        preprocess: list[Transform] | None = None,
        augment: list[Transform] | BatchAugmentation | None = None,
        patches: Patches | None = None,
        batch_size: int = 2,
        num_workers: int = 0,
        seed: int = 0,
        splits: Splits | PlaneSplit | None = None,
        fold: int | None = None,
        targets: Targets | None = None,
        boxes: BoxTargets | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.classes = classes
        self.preprocess = preprocess or []
        self.augment = augment or []
        self.patches = patches or Patches()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.splits = splits
        self.fold = fold
        self.targets = targets
        self.boxes = boxes
        self.opened: dict[Split, list[Opened]] = {}
        self.waits = False
        self.context = 0  # voxels at each face of a patch of which the network says nothing; the module sets it
        self._seen: dict[str, Any] = {}
        self._tables: dict[tuple[str, str | None], Table] = {}

    @cached_property
    def cases(self) -> list[Case]:
        """All cases of the source; no voxel is read, but for labels by which `Splits.shots` chooses.

        Raises:
            ValueError: There is none, a subject stands in two places, or a patient or an image in two splits.
        """
        asked = self.targets if self.targets and self.targets.numbered else self.boxes
        source = Numbered(self.source, asked.names) if asked and asked.names else self.source
        return list_cases(source, self.splits, self.fold, self.classes)

    @cached_property
    def class_map(self) -> ClassMap:
        """The recipe's classes; scans without labels leave them as the recipe has them."""
        if self.targets is not None and self.classes is None:
            return ClassMap({})  # what was drawn is of no use then
        if self.boxes is not None and self.boxes.names:
            return ClassMap({name: frozenset() for name in self.boxes.names})
        datasets = {(case.names, case.vocabulary): None for case in self.cases if case.names}
        if not datasets:
            wanted = self.classes if isinstance(self.classes, Classes) else Classes(self.classes)
            return ClassMap({name: frozenset() for name in wanted.names or ()}, wanted.exclusive)
        classes = match_classes(datasets, self.classes)
        untold = [classes.undecided(names, vocabulary) for names, vocabulary in datasets]
        for name in classes.names:
            if all(name in each for each in untold):
                raise ValueError(f"classes: no scan tells where {name} is: {untold[0][name]}")
        return classes

    @property
    def contract(self) -> Contract:
        """What a network trained on these batches expects of an image; once a fit is set up, with what it saw."""
        return replace(self._stated, **self._seen)

    @cached_property
    def _stated(self) -> Contract:
        contract = derive_contract(self.class_map.names, self.modality, self.preprocess, self.augment)
        contract = replace(contract, channels=shared_channels(self.cases), overlapping=not self.class_map.exclusive)
        augment = [] if isinstance(self.augment, BatchAugmentation) else self.augment
        colours_are_slices({"preprocess": self.preprocess, "augment": [*self.preprocess, *augment]})
        if self.boxes is None:
            return contract if self.targets is None else self.targets.stated(contract)
        check_carrying(list(flat(augment)))
        self.boxes.check(self.cases, self.classes, self.targets)
        return self.boxes.stated(contract)

    @property
    def modality(self) -> str | None:
        """What the source says of all scans, or what all of them say."""
        said = {case.modality for case in self.cases}
        return self.source.modality or (said.pop() if len(said) == 1 else None)

    @property
    def batches_per_epoch(self) -> int:
        """Steps in an epoch, whatever the number of devices."""
        return self.patches.per_epoch // self.batch_size

    def describe(self) -> str:
        """One line for reports: what the numbers were measured on."""
        contract = self.contract
        spacing = " x ".join(f"{each:g}" for each in contract.spacing_mm or ()) or "the files' own"
        grid = f"{contract.orientation or 'as stored'}, {spacing} mm"
        patch = "x".join(map(str, self.patches.size))
        asked = self.targets or self.boxes
        predicted = asked.description if asked else f"{len(contract.classes)} classes"
        return (
            f"{self._described_source()}; {predicted}; {grid}; "
            f"patches {patch}, {self.batch_size} a step, {self.patches.per_epoch} an epoch"
        )

    def _described_source(self) -> str:
        divided = self.splits.description if self.splits else ""
        fold = "" if self.fold is None else f"fold {self.fold}"
        return ", ".join(part for part in (self.source.description, divided, fold) if part)

    def adopt(self, weights: Contract) -> list[str]:
        """Prepare scans as weights expect them: orientation, spacing and intensities; return what that changes.

        Other transforms stay, as do patches, augmentation and batches.

        Raises:
            ValueError: The weights expect what no transform here makes.
        """
        self.preprocess, changed = adopt_preprocessing(self.preprocess, self._stated, weights)
        self.waits = False
        if changed:
            self.__dict__.pop("_stated", None)
            self.opened.clear()
            self._seen.clear()
        return changed

    def adopt_later(self) -> None:
        """Prepare nothing until `adopt` says for which weights, or until a batch is asked for."""
        self.waits = not self.opened

    def prepare_data(self) -> None:
        """Prepare the scans that the run needs; those that a former run prepared are found again."""
        _ = self.contract, self._known
        if not self.waits:
            self._open(self._wanted(None), tell=True)

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared scans of a stage; without a stage, of all."""
        if self.waits:
            return
        for split in self._wanted(stage):
            self.opened[split] = self._open((split,))
        if "train" in self.opened:
            self._seen = united(measured(each.prepared, self._stated) for each in self.opened["train"])
            if self.targets is not None:
                self._seen["seen_values"] = self.targets.scale([self._known[each] for each in self.subjects("train")])

    def described(self, split: Split) -> dict[str, Contract]:
        """Return each scan of a split in the words of a contract, its own values in the place of what training saw."""
        split = self._predicted if split == "predict" else split
        cases = {case.subject: case for case in self.cases}
        return {
            each.subject: described(cases[each.subject], each.prepared, self._stated) for each in self._split(split)
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return patches; after a resume they go on where they stopped."""
        cases = self._taught()
        if isinstance(self.augment, BatchAugmentation):
            cut = self.augment.margin_of
            dataset = PatchDataset(cases, self.patches, seed=self.seed, cut=cut, context=self.context)
        else:
            dataset = PatchDataset(cases, self.patches, self.augment, self.seed, None, self.context, self._seen_boxes)
        rank, ranks = self._rank()
        epoch, start = position(self.trainer, self.batches_per_epoch)
        sampler = AtlasSampler(dataset, self.batch_size, rank, ranks, epoch, start)
        return self._loader(dataset, sampler, sampler.share, PatchLoader)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches on the device, where the recipe says so."""
        if isinstance(self.augment, BatchAugmentation) and self.trainer is not None and self.trainer.training:
            batch = self.augment(batch, self.patches.size, side_pairs(self.class_map.names))
            if "boxes" in batch:
                batch["boxes"] = [self._seen_boxes(each, self.patches.size) for each in batch["boxes"]]
        return batch

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return whole validation scans, or nothing where the source has none."""
        return self._whole_loader("val") if any(case.split == "val" for case in self.cases) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return whole test scans."""
        return self._whole_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return whole scans to predict on; the test scans, if the source has none for it."""
        dataset = WholeDataset(self._split(self._predicted), self._seen_boxes)
        rank, ranks = self._rank()
        return self._loader(dataset, ShareSampler(dataset, ranks, rank), 1)

    def subjects(self, split: Split) -> list[str]:
        """Return the names of a split's subjects, in the order of their `index`."""
        if split == "predict":
            split = self._predicted
        return [case.subject for case in self.cases if case.split == split]

    def datasets(self, split: Split) -> list[str]:
        """Return the dataset of each of a split's subjects, in the order of their `index`."""
        if split == "predict":
            split = self._predicted
        return [case.dataset or "unnamed" for case in self.cases if case.split == split]

    def has(self, split: Split) -> bool:
        """Tell whether there are subjects in a split."""
        return bool(self.subjects(split))

    def whole(self, split: Split, n: int) -> Batch:
        """Return one whole prepared case as a batch."""
        return collate([WholeDataset(self._split(split), self._seen_boxes)[n]])

    def restore(self, rows: Integer[Tensor, "i j k"], subject: str) -> tio.LabelMap:
        """Return the rows of a prediction on the grid of the subject's own file.

        Of classes that exclude each other rows are what a label map holds: 0 is the background, then come the classes.

        Raises:
            ValueError: No such subject is open.
        """
        case = self._find(subject)
        values = to_file_grid(rows, case.prepared)
        most = max(len(self.class_map.names), int(values.max()))
        dtype = torch.uint8 if most < 2**8 else torch.int16 if most < 2**15 else torch.int32
        return tio.LabelMap(tensor=values.to(dtype)[None], affine=np.array(case.prepared.file_affine))

    def reference(self, subject: str) -> FileReference:
        """Return what was drawn on a subject, on the grid of its own file."""
        case = next(case for case in self.cases if case.subject == subject)
        return file_reference(case, self._find(subject))

    def patients(self, split: Split) -> list[str]:
        """Return whose scan each of a split's cases is, in the order of their `index`."""
        split = self._predicted if split == "predict" else split
        return [case.patient or case.subject for case in self.cases if case.split == split]

    def ceiling(self, split: Split, most: int = 8) -> dict[str, float]:
        """Return each class's Dice of the reference itself, sent to the network's grid and back: what the grid loses.

        The mean is over those of the first `most` cases that have the class drawn and present; NaN where there is none.
        """
        cases = {case.subject: case for case in self.cases}
        return ceilings(((cases[each.subject], each) for each in self._split(split)[:most]), self.class_map.names)

    def _wanted(self, stage: str | None) -> tuple[Split, ...]:
        stage = stage or (self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else None)
        wanted = SPLITS[stage] if stage else ("train", "val", "test", "predict")
        present = {case.split for case in self.cases}
        if stage == "predict":
            return (self._predicted,)
        return tuple(split for split in wanted if split in present)

    @property
    def _predicted(self) -> Split:
        return "predict" if any(case.split == "predict" for case in self.cases) else "test"

    def _open(self, splits: Sequence[Split], tell: bool = False) -> list[Opened]:
        begin = time.monotonic()
        cases = [case for case in self.cases if case.split in splits]
        found = prepare_all(cases, self.preprocess)
        opened = [self._opened(case, folder) for case, (folder, _) in zip(cases, found, strict=True)]
        if self.boxes is not None and self.boxes.takes_long:
            _ = [case.boxes for case in opened]  # before workers ask
        made = sum(new for _, new in found)
        if tell:
            seconds, known = time.monotonic() - begin, len(opened) - made
            print(f"scans: {made} prepared in {seconds:.1f} s, {known} prepared before, in {store_root()}")
            taught = [each for case, each in zip(cases, opened, strict=True) if case.split == "train"]
            left = not_taught(taught, self.targets, self.boxes, self.patches)
            for note in [*unusual_files(opened), *taken_for_whole(self.cases, self.class_map), *left]:
                print(f"note: {note}")
        return opened

    def _opened(self, case: Case, folder: Path) -> Opened:
        target = case.target if self.targets is None else self._known[case.subject]
        find = None if self.boxes is None or case.split == "predict" else partial(self.boxes.of, case)
        return Opened(case.subject, folder, self.class_map, case.vocabulary, case.dataset, target, self._tables, find)

    @property
    def _seen_boxes(self) -> Seen:
        return meeting if self.boxes is None else self.boxes.seen

    @cached_property
    def _known(self) -> dict[str, Tensor]:
        return {} if self.targets is None else self.targets.of(self.cases)

    def _split(self, split: Split) -> list[Opened]:
        if split not in self.opened:
            self.opened[split] = self._open((split,))
        if not self.opened[split]:
            has = ", ".join(sorted({case.split for case in self.cases}))
            raise ValueError(f"{self.source.description}: no subject stands in {split}; there are subjects in {has}")
        return self.opened[split]

    def _taught(self) -> list[Opened]:
        cases = [each for each in self._split("train") if self.targets is None or each.is_known]
        if not cases:
            raise ValueError(f"{self.source.description}: the target of no training scan is known")
        return cases

    def _find(self, subject: str) -> Opened:
        known = {case.subject: case for cases in self.opened.values() for case in cases}
        if subject in known:
            return known[subject]
        told = ", ".join(list(known)[:8]) or "none: call setup first"
        raise ValueError(f"no subject {subject!r} is open; open are {told}")

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _whole_loader(self, split: Split) -> DataLoader[Batch]:
        dataset = WholeDataset(self._split(split), self._seen_boxes)
        rank, ranks = self._rank()
        sampler = DistributedSampler(dataset, ranks, rank, shuffle=False)  # repeats cases, which `index` tells apart
        return self._loader(dataset, sampler, 1)

    def _loader(
        self, dataset: Dataset[Sample], sampler: Sampler, batch_size: int, kind: type[DataLoader] = DataLoader
    ) -> DataLoader[Batch]:
        return kind(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator().manual_seed(self.seed),  # the loader must not draw from the global one
        )
