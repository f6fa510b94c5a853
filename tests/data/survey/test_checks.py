import pickle
from dataclasses import replace

import nibabel as nib
import numpy as np

from lightning_atlas.data.cases import Case, DrawnOn, Mark
from lightning_atlas.data.survey.checks import check_case, check_cases, inspect_case
from lightning_atlas.data.variation import Variation


def scan(path, seed):
    voxels = np.random.default_rng(seed).integers(-1000, 1000, (8, 8, 8)).astype(np.int16)
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(path)
    return path


def cohort(folder, *subjects, **changes):
    made = []
    for seed, subject in enumerate(subjects):
        split = ("train", "val", "test")[seed % 3]
        folder.joinpath(f"{seed}").mkdir()
        image = scan(folder / f"{seed}" / "scan.nii.gz", seed)
        label = folder / f"{seed}" / "label.nii"
        nib.Nifti1Image(np.eye(8, dtype=np.uint8)[None].repeat(8, 0), np.eye(4)).to_filename(label)
        made.append(Case(subject, split, image, label, {"liver": 1}, **changes))
    return made


def test_a_sound_dataset_has_nothing_to_say(tmp_path):
    report = check_cases(cohort(tmp_path, "a", "b", "c"))
    assert (report.cases, report.defects, report.notes) == (3, (), ())
    assert str(report) == "3 cases: 0 defects in 0 of them, 0 notes"


def between(report):
    assert len(report.defects) == 1, str(report)
    return str(report.defects[0])


def test_two_subjects_of_one_name_are_told_even_in_other_letters(tmp_path):
    line = between(check_cases(cohort(tmp_path, "Anna", "b", "anna")[::2]))
    assert "0/scan.nii.gz" in line
    assert "2/scan.nii.gz" in line


def test_a_patient_in_two_splits_is_told_with_both_files(tmp_path):
    cases = cohort(tmp_path, "a", "b", "c")
    leaking = [replace(case, patient="p" if case.subject != "b" else None) for case in cases]
    line = between(report := check_cases(leaking))
    assert "0/scan.nii.gz" in line
    assert "2/scan.nii.gz" in line
    assert report.bad_subjects == {"c"}
    other = [replace(case, patient="p", dataset=case.subject) for case in cases]
    assert check_cases(other).defects == ()


def test_one_scan_under_two_names_is_told_however_it_is_packed(tmp_path):
    cases = cohort(tmp_path, "a", "b")
    copy = scan(tmp_path / "copy.nii", 0)
    line = between(check_cases([cases[0], replace(cases[1], image=copy)]))
    assert f"{copy} holds the same voxels as {cases[0].image} (b and a)" in line


def test_a_simulated_cohort_shares_its_scan(tmp_path):
    one, two = cohort(tmp_path, "a", "b")
    simulated = [
        replace(case, image=one.image, variation=Variation(0, n, 1.0, "CT")) for n, case in enumerate((one, two))
    ]
    assert check_cases(simulated).defects == ()


def test_different_planes_of_one_scan_may_be_in_two_splits(tmp_path):
    one, two = cohort(tmp_path, "a", "b")
    low = replace(one, patient="p", drawn_on=(DrawnOn(planes=(0, 1)),))
    high = replace(two, patient="p", image=one.image, drawn_on=(DrawnOn(planes=(4, 5)),))
    report = check_cases([low, high])
    assert report.defects == ()
    assert "is split by planes: train and val" in str(report.notes[0])
    assert check_cases([low, replace(high, drawn_on=(DrawnOn(planes=(1, 5)),))]).defects


def test_a_file_that_is_scan_and_label_is_told(tmp_path):
    one, two = cohort(tmp_path, "a", "b")
    lines = [str(each) for each in check_cases([one, replace(two, image=one.label)]).defects]
    assert [line for line in lines if "is a scan (of b) and a drawing (of a) at once" in line]


def test_a_crop_is_scan_and_drawing_of_its_own_case_only(tmp_path):
    def crop(name, seed, drawn_in):
        voxel = np.random.default_rng(seed).integers(0, 255, (4, 4, 4), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", voxel=voxel, answer1=voxel > 99)
        masks = {"nodule": Mark(tmp_path / f"{drawn_in}.npz", 1)}
        return Case(name, "train", tmp_path / f"{name}.npz", masks=masks)

    one = crop("a", 0, "a")
    assert check_cases([one, crop("b", 1, "b")]).defects == ()
    line = between(check_cases([one, crop("b", 1, "a")]))
    assert "a.npz is a scan (of a) and a drawing (of b) at once" in line


def test_threads_find_the_same_and_progress_is_told(tmp_path):
    cases = cohort(tmp_path, "a", "b", "c", "d")
    for case in cases[1:3]:
        case.image.write_bytes(case.image.read_bytes()[:-9])
    seen = []
    report = check_cases(cases, workers=3, progress=lambda done, of: seen.append((done, of)))
    assert report == check_cases(cases)
    assert report.bad_subjects == {"b", "c"}
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_check_can_go_to_another_process(tmp_path):
    case = replace(cohort(tmp_path, "a")[0], label=tmp_path / "none.nii")
    check, one = pickle.loads(pickle.dumps((inspect_case, case)))
    assert check(one) == inspect_case(case)
    assert pickle.loads(pickle.dumps(check_case(case)))[0].file == case.label
