from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from lightning_atlas.data.cases import Case, DrawnOn, Split
from lightning_atlas.data.sources.splits import PlaneSplit, Splits, check_leaks
from lightning_atlas.data.variation import Variation


def scans(patients, each=2, split: Split = "train", dataset="clinic"):
    """Two scans of each patient."""
    return [
        Case(f"{patient}-{n}", split, Path(f"{dataset}/{patient}-{n}.nii.gz"), patient=patient, dataset=dataset)
        for patient in patients
        for n in range(each)
    ]


def people(number):
    return [f"p{n:03d}" for n in range(number)]


def by_patient(cases):
    return {str(case.patient): case.split for case in cases}


def of(cases, split):
    return {str(case.patient) for case in cases if case.split == split}


def test_all_scans_of_a_patient_are_in_one_split_and_the_shares_are_of_patients():
    cases = Splits(val_share=0.25, test_share=0.1).assign(scans(people(40), each=3))
    assert all(len({case.split for case in cases if case.patient == patient}) == 1 for patient in people(40))
    assert [len(of(cases, split)) for split in ("train", "val", "test")] == [26, 10, 4]


def test_the_order_of_the_cases_does_not_matter_and_the_seed_does():
    cases = scans(people(30))
    assert by_patient(Splits().assign(cases)) == by_patient(Splits().assign(cases[::-1]))
    assert by_patient(Splits().assign(cases)) != by_patient(Splits(seed=1).assign(cases))


@pytest.mark.parametrize("fold", [None, 0, 3])
def test_a_patient_who_is_added_moves_at_most_one_other_across_each_border(fold):
    before, after = (by_patient(Splits().assign(scans(people(n)), fold)) for n in (60, 61))
    assert sum(before[patient] != after[patient] for patient in before) <= 4  # borders of test, train and val
    assert "p060" in after


def test_folds_share_out_all_patients_but_those_of_the_test_which_stay():
    cases = scans(people(23))
    folds = [Splits(folds=5).assign(cases, fold) for fold in range(5)]
    validated = [patient for each in folds for patient in of(each, "val")]
    assert sorted(validated) == sorted(set(people(23)) - of(folds[0], "test"))
    assert {frozenset(of(each, "test")) for each in folds} == {frozenset(of(Splits().assign(cases), "test"))}
    assert max(len(of(each, "val")) for each in folds) - min(len(of(each, "val")) for each in folds) <= 1


def test_what_a_dataset_declares_is_kept_and_the_other_dataset_is_divided():
    declared = scans(people(3), split="test", dataset="a") + scans(["x", "y"], split="val", dataset="a")
    declared += scans([f"q{n}" for n in range(10)], dataset="a")
    cases = Splits().assign([*declared, *scans(people(10), dataset="b")])
    kept, divided = ([case for case in cases if case.dataset == each] for each in "ab")
    assert kept == declared
    assert [len(of(divided, split)) for split in ("train", "val", "test")] == [6, 2, 2]


def test_with_a_fold_declared_training_and_validation_are_one_and_the_test_stays():
    declared = scans(["t"], split="test") + scans(["v"], split="val") + scans(people(9))
    folds = [Splits(folds=2).assign(declared, fold) for fold in (0, 1)]
    assert [of(each, "test") for each in folds] == [{"t"}, {"t"}]
    assert of(folds[0], "val") | of(folds[1], "val") == {"v", *people(9)}


def test_fewer_shots_are_among_more_shots_and_leave_the_other_splits_alone():
    cases = scans(people(40))
    whole = Splits().assign(cases)
    few, more = (Splits(shots=shots).assign(cases) for shots in (5, 10))
    assert of(few, "train") < of(more, "train") < of(whole, "train")
    assert (len(of(few, "train")), len(of(more, "train"))) == (5, 10)
    assert all(of(few, split) == of(whole, split) for split in ("val", "test"))


HELD = {f"p{n:03d}": frozenset("ab" if n % 3 == 0 else "b" if n % 3 == 1 else "c") for n in range(40)}
"""Nobody has all three; one of the first and one of the third kind have them between them."""


def holding(cases):
    assert all(case.split == "train" for case in cases)
    return ("a", "b", "c"), [HELD[str(case.patient)] if case.subject.endswith("0") else frozenset() for case in cases]


def held(patients):
    return frozenset().union(*(HELD[each] for each in patients))


@pytest.mark.filterwarnings("ignore:shots. 1 training patients have")
@pytest.mark.parametrize("seed", range(5))
def test_few_shots_have_every_class_as_soon_as_they_can_and_stay_a_nest(seed):
    cases = scans(people(40))
    nest = [of(Splits(shots=shots, seed=seed).assign(cases, holding=holding), "train") for shots in range(1, 25)]
    assert all(fewer < more for fewer, more in pairwise(nest))
    assert held(nest[0]) == {"a", "b"}
    assert all(held(each) == {"a", "b", "c"} for each in nest[1:])
    whole = Splits(seed=seed).assign(cases)
    few = Splits(shots=2, seed=seed).assign(cases, holding=holding)
    assert all(of(few, split) == of(whole, split) for split in ("val", "test"))


def test_another_seed_of_the_shots_draws_another_nest_of_the_same_training_patients():
    cases = scans(people(40))
    whole = Splits().assign(cases)
    drawn = [Splits(shots=4, shots_seed=seed).assign(cases, holding=holding) for seed in range(6)]
    assert len({frozenset(of(each, "train")) for each in drawn}) == 6
    assert {frozenset(of(each, "test")) for each in drawn} == {frozenset(of(whole, "test"))}
    assert all(of(each, "train") < of(whole, "train") for each in drawn)
    assert by_patient(Splits(shots=4, shots_seed=0).assign(cases)) == by_patient(Splits(shots=4).assign(cases))


def test_too_few_shots_for_every_class_are_told_with_the_number_that_it_takes():
    with pytest.warns(UserWarning, match="1 training patients have 2 of 3 classes, not c; it takes 2"):
        Splits(shots=1).assign(scans(people(40)), holding=holding)


def test_a_class_that_no_training_patient_has_is_refused():
    def lacking(cases):
        classes, found = holding(cases)
        return (*classes, "spleen"), found

    with pytest.raises(
        ValueError, match=r"shots: spleen occurs in none of the 24 training patients.*data\.init_args\.classes"
    ):
        Splits(shots=3).assign(scans(people(40)), holding=lacking)


def test_scans_to_predict_are_left_alone():
    cases = Splits().assign([*scans(people(9)), *scans(["new"], split="predict")])
    assert of(cases, "predict") == {"new"}


@pytest.mark.parametrize(
    ("settings", "fold", "message"),
    [
        ({"val_share": 0.7, "test_share": 0.5}, None, "together at most 1"),
        ({"folds": 1}, None, "2 at least"),
        ({"shots": 50}, None, "shots is 50, but 6 patients"),
        ({}, 5, "no fold 5; 5 folds are called 0 to 4"),
        ({"folds": 20}, 0, "8 patients of clinic cannot make 20 folds"),
    ],
)
def test_what_cannot_be_divided_is_told(settings, fold, message):
    with pytest.raises(ValueError, match=message):
        Splits(**settings).assign(scans(people(10)), fold)


def test_a_patient_in_two_splits_is_refused_with_both_scans():
    leak = [*scans(["a"], each=1), replace(scans(["a"], each=2)[1], split="test")]
    with pytest.raises(ValueError, match="patient a is in two splits: a-0 in train and a-1 in test"):
        Splits().assign(leak)


def test_one_image_under_two_names_is_refused_with_both_also_through_a_link(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"scan")
    (tmp_path / "b.nii").symlink_to("a.nii")
    with pytest.raises(ValueError, match="one image under two names: a and b both have"):
        check_leaks([Case(name, "train", tmp_path / f"{name}.nii") for name in "ab"])
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="one image under two names: a and b both have"):
        check_leaks([Case("a", "train", tmp_path / "a.nii"), Case("b", "test", tmp_path / "again" / "a.nii")])


def test_simulated_subjects_of_one_scan_are_no_leak():
    first = Case("s0", "train", Path("a.nii"), patient="one", variation=Variation(0, 0, 1.0, "CT"))
    check_leaks([first, replace(first, subject="s1", split="val", variation=Variation(0, 1, 1.0, "CT"))])


@pytest.fixture
def scan(tmp_path):
    """20 x 8 x 8 voxels of 2 x 1 x 1 mm, whose first axis runs from the head downwards."""
    affine = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [-2, 0, 0, 0], [0, 0, 0, 1]])
    Nifti1Image(np.zeros((20, 8, 8), np.uint8), affine).to_filename(tmp_path / "scan.nii.gz")
    return Case("scan", "train", tmp_path / "scan.nii.gz", tmp_path / "scan.nii.gz", {"liver": 1})


def planes(cases):
    """Return what the split added to where somebody drew."""
    return {case.split: tuple(case.drawn_on[-1].planes or [-1]) for case in cases}


def test_planes_of_one_scan_are_apart_by_the_margin_and_declared(scan):
    split = PlaneSplit("k", val_share=0.2, test_share=0.1, margin_mm=5.0)
    cases = split.assign([scan])
    train, val, test = planes(cases).values()
    assert (test, val) == ((0, 1), (16, 17, 18, 19))
    assert (train[0] - test[-1]) * 2 >= 5
    assert (val[0] - train[-1]) * 2 >= 5
    assert train == tuple(range(4, 14))  # 6 mm on both sides: 4 mm would be too little
    assert {case.patient for case in cases} == {"scan"}
    assert len({case.subject for case in cases}) == 3
    assert "split by planes of one scan" in split.description
    check_leaks(cases)


def test_planes_that_overlap_are_a_leak(scan):
    train, val = (replace(scan, drawn_on=(DrawnOn(planes=planes),)) for planes in ((3, 4), (3, 9)))
    with pytest.raises(ValueError, match="in two splits"):
        check_leaks([train, replace(val, split="val")])


def test_declared_planes_stay_as_they_are_when_others_are_divided(scan):
    apart = PlaneSplit(margin_mm=0.0).assign([scan])
    cases = Splits().assign([*apart, *scans(people(10))])
    assert cases[: len(apart)] == apart


def test_only_drawn_planes_are_divided_and_other_restrictions_stay(scan):
    place = DrawnOn(planes=(2, 6, 9, 12, 15), mask=Path("m.nii"), names=("liver",))
    cases = PlaneSplit(val_share=0.2, margin_mm=0.0).assign([replace(scan, drawn_on=(place,))])
    assert planes(cases) == {"train": (2, 6, 9, 12), "val": (15,)}
    assert all(case.drawn_on[:-1] == (place,) for case in cases)
    check_leaks(cases)


def test_a_margin_that_leaves_nothing_and_several_scans_are_told(scan):
    with pytest.raises(ValueError, match=r"20 planes along k, 2 mm apart.*margin_mm 100"):
        PlaneSplit(margin_mm=100.0).assign([scan])
    with pytest.raises(ValueError, match="20 scans; several scans are split by patient"):
        PlaneSplit().assign(scans(people(10)))


def test_shots_leave_scans_alone_that_are_to_be_predicted_on():
    cases = [Case(f"new {number}", "predict", Path(f"{number}.nii.gz")) for number in range(3)]
    assert Splits(shots=2).assign(cases) == cases
