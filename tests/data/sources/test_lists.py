from pathlib import Path

import pytest

from lightning_atlas.data.cases import Case
from lightning_atlas.data.sources.lists import listed, of_patients
from lightning_atlas.data.sources.manifest import read_manifest
from lightning_atlas.data.sources.write_manifest import write_manifest

CASES = [Case(f"P{n // 2}_{phase}", "train", Path(f"{n}.nii.gz")) for n, phase in enumerate("vava")]


def write(folder, **lists):
    for split, lines in lists.items():
        (folder / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    return {split: folder / f"{split}.txt" for split in lists}


def test_cases_stand_in_the_split_of_their_list_and_others_are_left_out(tmp_path):
    lists = write(tmp_path, train=["# subjects", "P0_v\tpatient 0", "", "P0_a"], test=["P1_a"])
    assert {case.subject: case.split for case in listed(CASES, lists)} == {
        "P0_v": "train",
        "P0_a": "train",
        "P1_a": "test",
    }


def test_a_list_may_be_the_names_themselves(tmp_path):
    lists = write(tmp_path, train=["P0_v", "P0_a"]) | {"test": ["P1_a"]}
    assert [case.split for case in listed(CASES, lists)] == ["train", "train", "test"]
    with pytest.raises(ValueError, match=r"lists: test has P0_a, which .*train\.txt has too"):
        listed(CASES, {**lists, "test": ["P0_a"]})


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        ({"train": ["P0_v"], "test": ["P0_v"]}, "has P0_v, which .*train.txt has too"),
        ({"train": ["P0_w", "P0_v"]}, r"1 of 2 subjects are not there: P0_w \(near: P0_v\)"),
        ({"training": ["P0_v"]}, "no split 'training'"),
    ],
)
def test_a_list_that_does_not_fit_is_told(tmp_path, lists, told):
    with pytest.raises(ValueError, match=told):
        listed(CASES, write(tmp_path, **lists))


def test_a_patient_on_two_lists_is_refused(tmp_path):
    cases = of_patients(CASES, "(P[0-9])_.*")
    assert [case.patient for case in cases] == ["P0", "P0", "P1", "P1"]
    with pytest.raises(ValueError, match="patient P0 is in two splits: P0_v in train and P0_a in test"):
        listed(cases, write(tmp_path, train=["P0_v"], test=["P0_a"]))


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("P[0-9]_.*", "has 0 groups"),
        ("(P", "no regular expression"),
        ("(Q.*)", "does not fit 4 subjects, such as P0_v"),
    ],
)
def test_a_pattern_that_tells_no_patient_is_refused(pattern, told):
    with pytest.raises(ValueError, match=told):
        of_patients(CASES, pattern)


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_a_manifest_keeps_published_folds(tmp_path, suffix):
    cases = [Case(f"s{n}", "train", tmp_path / f"{n}.nii.gz", fold=n) for n in (0, 3)]
    write_manifest(tmp_path / f"table.{suffix}", cases)
    assert [case.fold for _, case in read_manifest(tmp_path / f"table.{suffix}")] == [0, 3]
