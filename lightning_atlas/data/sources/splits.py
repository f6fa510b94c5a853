"""Who trains, who validates, who tests: by patient and never by scan."""

import hashlib
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import nibabel as nib
import numpy as np

from lightning_atlas.data.cases import Case, DrawnOn, Split
from lightning_atlas.data.formats import read_header
from lightning_atlas.data.sources.covering import covering_order

Patient = tuple[str, str]
"""Dataset and name: two datasets may call two people alike."""
Holding = Callable[[Sequence[Case]], tuple[Sequence[str], Sequence[frozenset[str]]]]
"""Cases -> all classes, and those that occur in each of the cases."""


@dataclass(frozen=True)
class Splits:
    """Divides the patients of each dataset, and keeps what the dataset declares.

    Patients declared `train` are those to divide: some of them validate where the dataset declares none for that, and
    some test likewise. Their order is a hash of seed and name, so that a patient who is added moves at most one other
    across each border.

    Args:
        val_share: Share of the patients for validation, where the dataset declares none.
        test_share: Share of the patients for testing, where the dataset declares none.
        folds: Number of folds; the patients of the chosen one validate, all others but the test's train. Where a
            dataset was published with folds, it is those.
        shots: Number of training patients; `null` for all. Those of a smaller number are among those of a larger, and
            every class of the recipe occurs in them as soon as it can in so many; for that the label files of all
            training patients are read, once. An epoch keeps its number of patches, so few patients mean no fewer steps.
        seed: Another seed divides otherwise, and chooses other `shots`.
        shots_seed: Another one chooses other `shots` of the same training patients; `null` takes `seed`.
    """

    val_share: float = 0.2
    test_share: float = 0.2
    folds: int = 5
    shots: int | None = None
    seed: int = 0
    shots_seed: int | None = None

    def __post_init__(self) -> None:
        _check_shares(self.val_share, self.test_share)
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}; there are 2 at least")
        if self.shots is not None and self.shots < 1:
            raise ValueError(f"shots is {self.shots}; it counts training patients, from 1")

    @property
    def description(self) -> str:
        """One line for reports."""
        shots = "" if self.shots is None else f", {self.shots} training patients"
        shots += "" if self.shots_seed is None else f" of seed {self.shots_seed}"
        return f"split by patient (seed {self.seed}{shots})"

    def assign(self, cases: Sequence[Case], fold: int | None = None, holding: Holding | None = None) -> list[Case]:
        """Return the cases with their splits, without those of training patients beyond `shots`.

        Args:
            cases: Cases of any number of datasets.
            fold: The fold that validates, from 0; `None` takes the shares.
            holding: Says which classes there are, and which of them occur in each case, so that `shots` cover them.

        Raises:
            ValueError: A patient is in two splits, there is no such fold, there are fewer patients than folds or shots,
                or a class occurs in no training patient.
        """
        check_leaks(cases)
        published = {patient_of(case): case.fold for case in cases if case.fold is not None}
        folds = 1 + max(published.values(), default=self.folds - 1)
        if fold is not None and not 0 <= fold < folds:
            raise ValueError(f"there is no fold {fold}; {folds} folds are called 0 to {folds - 1}")
        declared: set[tuple[Patient, Split]] = {
            (patient_of(case), case.split) for case in cases if case.split != "predict"
        }
        times = Counter(patient for patient, _ in declared)  # 2 where a scan is divided by planes, which stays so
        chosen: dict[Patient, Split] = {patient: split for patient, split in declared if times[patient] == 1}
        for dataset in {dataset for dataset, _ in chosen}:
            patients = [each for each in chosen if each[0] == dataset]
            known = {each: published[each] for each in patients if each in published and chosen[each] != "test"}
            if fold is not None and known:
                chosen |= {each: "val" if number == fold else "train" for each, number in known.items()}
            else:
                self._divide(chosen, patients, fold)
        if self.shots is not None and chosen:  # nobody is chosen where all scans are to be predicted on
            training = [each for each, split in chosen.items() if split == "train"]
            if len(training) < self.shots:
                raise ValueError(f"shots is {self.shots}, but {len(training)} patients are there to train on")
            for patient in self._nest(training, cases, holding)[self.shots :]:
                del chosen[patient]
        fixed = [case.split == "predict" or times[patient_of(case)] > 1 for case in cases]
        return [
            case if keep else replace(case, split=chosen[patient_of(case)])
            for case, keep in zip(cases, fixed, strict=True)
            if keep or patient_of(case) in chosen
        ]

    def _divide(self, chosen: dict[Patient, Split], patients: list[Patient], fold: int | None) -> None:
        """Choose for the patients of one dataset."""
        declared = {chosen[each] for each in patients}
        pool = self._ordered((each for each in patients if chosen[each] == "train"), "splits")
        testing = 0 if "test" in declared else _count(self.test_share, len(pool))
        chosen |= dict.fromkeys(pool[:testing], "test")
        if fold is None:
            validating = 0 if "val" in declared else _count(self.val_share, len(pool))
            chosen |= dict.fromkeys(pool[max(testing, len(pool) - validating) :], "val")
            return
        pool = self._ordered((each for each in patients if chosen[each] != "test"), "splits")
        if 0 < len(pool) < self.folds:
            raise ValueError(f"{len(pool)} patients of {pool[0][0] or 'the dataset'} cannot make {self.folds} folds")
        first, last = (round(len(pool) * each / self.folds) for each in (fold, fold + 1))
        chosen |= dict.fromkeys(pool, "train")
        chosen |= dict.fromkeys(pool[first:last], "val")

    def _nest(self, training: Sequence[Patient], cases: Sequence[Case], holding: Holding | None) -> list[Patient]:
        """Return the training patients in the order in which `shots` takes them."""
        order = self._ordered(training, "shots", self.shots_seed)
        if holding is None or self.shots == len(order):
            return order
        theirs = [case for case in cases if patient_of(case) in set(order) and case.split != "predict"]
        classes, occurring = holding(theirs)
        held: dict[Patient, frozenset[str]] = dict.fromkeys(order, frozenset())
        for case, found in zip(theirs, occurring, strict=True):
            held[patient_of(case)] |= found
        if nowhere := [name for name in classes if not any(name in found for found in held.values())]:
            raise ValueError(
                f"shots: {', '.join(nowhere)} occurs in none of the {len(order)} training patients, so no number of "
                "them has every class: take it out of data.init_args.classes, or change the seed of the splits"
            )
        order, needed = covering_order(order, held)
        if self.shots is not None and self.shots < needed:
            here = frozenset().union(*(held[each] for each in order[: self.shots]))
            warnings.warn(
                f"shots: {self.shots} training patients have {len(here)} of {len(classes)} classes, not "
                f"{', '.join(name for name in classes if name not in here)}; it takes {needed} to have them all",
                stacklevel=2,
            )
        return order

    def _ordered(self, patients: Iterable[Patient], purpose: str, seed: int | None = None) -> list[Patient]:
        chosen = self.seed if seed is None else seed

        def rank(patient: Patient) -> bytes:
            return hashlib.sha256("\0".join((str(chosen), purpose, *patient)).encode()).digest()

        return sorted(patients, key=rank)


@dataclass(frozen=True)
class PlaneSplit:
    """Divides the planes of one scan, which says nothing about other patients; reports name it.

    The lowest planes test, the highest validate, those between train. Parts are `margin_mm` apart.

    Args:
        axis: Axis across the planes: `i` left to right, `j` back to front, `k` upwards.
        val_share: Share of the planes for validation.
        test_share: Share of the planes for testing.
        margin_mm: Least distance between planes of two parts, taken from the training planes.
    """

    axis: Literal["i", "j", "k"] = "k"
    val_share: float = 0.2
    test_share: float = 0.0
    margin_mm: float = 10.0

    def __post_init__(self) -> None:
        _check_shares(self.val_share, self.test_share)
        if not 0 <= self.margin_mm < math.inf:
            raise ValueError(f"margin_mm is {self.margin_mm}; it is a distance")

    @property
    def description(self) -> str:
        """One line for reports: these are no numbers about patients."""
        return f"split by planes of one scan (along {self.axis}, {self.margin_mm:g} mm apart)"

    def assign(self, cases: Sequence[Case], fold: int | None = None) -> list[Case]:
        """Return the scan once for each part, as a case with the planes of that part.

        Args:
            cases: The case of one scan, and others to predict on.
            fold: A split by planes has none.

        Raises:
            ValueError: There are several scans, or too few planes.
        """
        scans = [case for case in cases if case.split != "predict"]
        if len(scans) != 1 or fold is not None:
            found = f"{len(scans)} scans" if fold is None else f"fold {fold}"
            raise ValueError(f"{self.description}, but there is {found}; several scans are split by patient")
        (case,) = scans
        parts = [
            replace(
                case,
                subject=f"{case.subject}-{split}",
                split=split,
                patient=patient_of(case)[1],
                drawn_on=(*case.drawn_on, DrawnOn(planes=planes, axis=self.axis)),
            )
            for split, planes in self._parts(case).items()
            if planes
        ]
        return [*parts, *(case for case in cases if case.split == "predict")]

    def _parts(self, case: Case) -> dict[Split, tuple[int, ...]]:
        file = next(iter(case.channels.values()))
        header = read_header(file)
        across = int(np.flatnonzero(nib.orientations.io_orientation(header.affine)[:, 0] == "ijk".index(self.axis))[0])
        gap = max(1, math.ceil(round(self.margin_mm / header.spacing_mm[across], 6)))
        planes = self._drawn(case) or range(header.shape[across])
        number = len(planes)
        test, val = planes[: round(number * self.test_share)], planes[number - round(number * self.val_share) :]
        lowest = test[-1] + gap if test else planes[0]
        highest = val[0] - gap if val else planes[-1]
        train = tuple(each for each in planes[len(test) : number - len(val)] if lowest <= each <= highest)
        if not train:
            raise ValueError(
                f"{file} has {number} planes along {self.axis}, {header.spacing_mm[across]:g} mm apart: "
                f"val_share {self.val_share}, test_share {self.test_share} and margin_mm {self.margin_mm:g} leave none "
                "to train on"
            )
        return {"train": train, "val": tuple(val), "test": tuple(test)}

    def _drawn(self, case: Case) -> list[int]:
        regions = [region.planes for region in case.drawn_on if region.axis == self.axis and region.planes]
        return sorted({plane for planes in regions for plane in planes}) if len(regions) == len(case.drawn_on) else []


def patient_of(case: Case) -> Patient:
    """Return whose scan it is: the dataset, and the patient's name or else the subject's."""
    return case.dataset, case.patient or case.subject


def check_leaks(cases: Sequence[Case]) -> None:
    """Refuse to measure on what was trained on; simulated subjects and apart planes of one scan are declared as such.

    Raises:
        ValueError: A patient is in two splits, or an image belongs to two patients; the message names both subjects.
    """
    real = [case for case in cases if case.variation is None and case.split != "predict"]
    patients: dict[Patient, list[Case]] = {}
    images: dict[str, Case] = {}
    folders: dict[str, str] = {}
    for case in real:
        others = patients.setdefault(patient_of(case), [])
        for other in others:
            if other.split != case.split and not apart(other, case):
                raise ValueError(
                    f"patient {patient_of(case)[1]} is in two splits: {other.subject} in {other.split} and "
                    f"{case.subject} in {case.split}; put both into one"
                )
        if all(other.split != case.split or other.drawn_on != case.drawn_on for other in others):
            others.append(case)
        for file in case.channels.values():
            place = _without_links(str(file), folders)
            other = images.setdefault(place, case)
            if patient_of(other) != patient_of(case):
                raise ValueError(
                    f"one image under two names: {other.subject} and {case.subject} both have {place}; "
                    "remove one, or give both the same patient"
                )


def apart(one: Case, other: Case) -> bool:
    """Tell whether two cases are one scan, and somebody drew on planes of which they have none in common."""
    places = [[place for place in case.drawn_on if place.planes and place.names is None] for case in (one, other)]
    return one.channels == other.channels and any(
        a.axis == b.axis and not set(a.planes or ()) & set(b.planes or ()) for a, b in product(*places)
    )


def _without_links(file: str, folders: dict[str, str]) -> str:
    """Return where a file lies; each folder is looked up once, since that takes longest and there may be a million."""
    if os.path.islink(file):  # noqa: PTH114 - as text, a third of the time of `Path.resolve`
        return os.path.realpath(file)
    folder, name = os.path.split(file)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)  # noqa: PTH118


def _count(share: float, patients: int) -> int:
    least = 1 if share > 0 and patients >= 3 else 0  # one to train on, one to validate, one to test
    return max(least, round(patients * share))


def _check_shares(val_share: float, test_share: float) -> None:
    if not (val_share >= 0 and test_share >= 0 and val_share + test_share <= 1):
        raise ValueError(
            f"val_share {val_share} and test_share {test_share} must be from 0 to 1, and together at most 1"
        )
