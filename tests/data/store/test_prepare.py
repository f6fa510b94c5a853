import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio
from torchio.transforms import Lambda, Resample, RescaleIntensity, ToCanonical

import lightning_atlas
from lightning_atlas.data import Case, DrawnOn, EmbeddedScan, SimulatedCohort
from lightning_atlas.data.store import hashes, prepare as prepare_module
from lightning_atlas.data.store.keys import settings, store_key
from lightning_atlas.data.store.prepare import PLACES_PER_ROW, prepare, prepare_all, some_observed, transformed
from lightning_atlas.data.store.reading import read_case

CANONICAL = [ToCanonical(), RescaleIntensity((-1, 1), percentiles=(1, 99))]


def spine(**changes):
    return replace(SimulatedCohort("spine_mr", 1, 0, 0).cases()[0], **changes)


def planes(prepared):
    return np.flatnonzero((prepared.label() != 0).any(axis=(0, 1))).tolist()


def test_the_store_holds_what_the_transforms_give():
    prepared, new = prepare(spine(), CANONICAL)
    subject = read_case(spine())[0]
    for transform in CANONICAL:
        subject = transform(subject)
    assert new
    assert np.allclose(prepared.image(), subject.get_image("image").numpy(), atol=2**-11)
    assert np.array_equal(prepared.label(), subject.get_image("label").numpy()[0])
    assert np.allclose(prepared.affine, subject.get_image("label").affine)
    assert prepared.minimum == pytest.approx(-1)


def test_places_are_voxels_of_their_row_and_counts_are_exact():
    prepared, _ = prepare(EmbeddedScan("spine_mr").case, CANONICAL)
    label = prepared.label()
    for row in range(2, len(prepared.counts)):
        places = prepared.places(row)
        assert prepared.counts[row] == (label == row).sum()
        assert len(np.unique(places, axis=0)) == len(places) == min(prepared.counts[row], PLACES_PER_ROW)
        assert (label[tuple(places.T)] == row).all()
    assert len(prepared.places(0)) == len(prepared.places(1)) == 0


def test_the_second_time_nothing_is_read(monkeypatch):
    first, _ = prepare(spine(), CANONICAL)
    monkeypatch.setattr(
        "lightning_atlas.data.store.prepare.read_case", lambda case: pytest.fail("a source was read again")
    )
    again, new = prepare(spine(), [ToCanonical(), RescaleIntensity((-1, 1), percentiles=(1, 99))])
    assert not new
    assert again == first


@pytest.mark.parametrize(
    "changed",
    [
        (spine(drawn=("spinal_cord",)), CANONICAL),
        (spine(drawn_on=(DrawnOn(planes=(3,)),)), CANONICAL),
        (SimulatedCohort("spine_mr", 2, 0, 0).cases()[1], CANONICAL),
        (SimulatedCohort("spine_mr", 1, 0, 0, displacement_mm=11.0).cases()[0], CANONICAL),
        (EmbeddedScan("spine_mr").case, CANONICAL),
        (EmbeddedScan("spine_ct").case, CANONICAL),
        (spine(), [ToCanonical(), RescaleIntensity((-1, 1), percentiles=(2, 99))]),
        (spine(), CANONICAL[:1]),
        (spine(), CANONICAL[::-1]),
    ],
)
def test_whatever_changes_the_result_changes_the_key(changed):
    assert store_key(*changed) != store_key(spine(), CANONICAL)


def test_names_and_splits_do_not_change_the_key():
    assert store_key(spine(subject="other", split="test"), CANONICAL) == store_key(spine(), CANONICAL)


def test_another_content_under_the_same_name_is_another_key(tmp_path):
    case = EmbeddedScan("spine_mr").case
    copy = tmp_path / "scan.nii.gz"
    copy.write_bytes(case.channels["image"].read_bytes())
    moved = replace(case, image=copy)
    assert store_key(moved, CANONICAL) == store_key(case, CANONICAL)
    image = tio.ScalarImage(case.channels["image"])
    tio.ScalarImage(tensor=image.data + 1, affine=image.affine).save(copy)
    assert store_key(moved, CANONICAL) != store_key(case, CANONICAL)


def test_a_function_without_a_name_is_refused():
    with pytest.raises(ValueError, match="use a named function"):
        settings(Lambda(lambda image: image))
    assert settings(Lambda(torch.abs)) == settings(Lambda(torch.abs))


def test_two_at_once_make_one_store(cache):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: prepare(spine(), CANONICAL)[0], range(4)))
    assert len(set(results)) == 1
    assert [path.suffix for path in (cache / "prepared").iterdir()] == [""]


def test_a_killed_run_leaves_no_half_store(cache, monkeypatch):
    monkeypatch.setattr(
        "lightning_atlas.data.store.prepare.json.dump", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        prepare(spine(), CANONICAL)
    assert list((cache / "prepared").iterdir()) == []


def test_a_folder_that_cannot_be_synced_is_good_enough(monkeypatch):
    def refuse(descriptor):
        raise OSError("not supported here")

    monkeypatch.setattr(os, "fsync", refuse)
    assert prepare(spine(), CANONICAL)[1]


def test_preparing_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    prepare(spine(), CANONICAL)
    assert torch.equal(torch.rand(4), expected)


def test_annotated_planes_survive_a_finer_grid_and_are_missed_in_a_coarser_one():
    case = replace(EmbeddedScan("chest_ct").case, drawn_on=(DrawnOn(planes=(4, 20)),))
    prepared, _ = prepare(case, [ToCanonical(), Resample((6, 6, 5))])
    back = np.linalg.inv(np.array(prepared.file_affine)) @ np.array(prepared.affine)
    assert sorted({round(plane * back[2, 2] + back[2, 3]) for plane in planes(prepared)}) == [4, 20]
    with pytest.raises(ValueError, match=r"annotated planes \[4\] of .* fall between"):
        prepare(replace(case, drawn_on=(DrawnOn(planes=(4,)),)), [ToCanonical(), Resample((6, 6, 31))])


@pytest.mark.parametrize("spacing", [10.0, 9.999999999999996, 10.000000000000004, 9.9995, 10.001])
def test_a_spacing_that_is_the_files_own_but_for_rounding_keeps_its_planes(spacing):
    affine = np.diag([2.0, 2.0, spacing, 1.0])
    image = tio.ScalarImage(tensor=torch.rand(1, 4, 4, 30), affine=affine)
    found = transformed(tio.Subject(image=image), [Resample((2, 1, 10))]).get_image("image")
    assert found.spatial_shape == (4, 8, 30)
    assert np.allclose(found.affine[:, [0, 2]], affine[:, [0, 2]])
    assert np.allclose(found.affine[2], affine[2])


@pytest.mark.parametrize("target", [3, (3, 2.1, 10)])
def test_another_spacing_is_resampled_to_as_torchio_does(target):
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.rand(1, 9, 9, 31), affine=np.diag([2.0, 2.0, 5.0, 1.0])))
    expected = Resample(target)(subject).get_image("image")
    found = transformed(subject, [Resample(target)]).get_image("image")
    assert torch.equal(found.data, expected.data)
    assert np.array_equal(found.affine, expected.affine)


def test_a_scan_is_read_for_its_hash_and_right_after_for_its_voxels(tmp_path, monkeypatch):
    read = []
    for module, name in ((hashes, "_hash"), (prepare_module, "read_case")):
        own = getattr(module, name)
        monkeypatch.setattr(module, name, lambda given, own=own, name=name: (read.append((name, given)), own(given))[1])
    cases = []
    for number in range(2):
        file = tmp_path / f"{number}.nii.gz"
        tio.ScalarImage(tensor=torch.rand(1, 4, 4, 4)).save(file)
        cases.append(Case(str(number), "predict", file))
    made = prepare_all(cases, [ToCanonical()])
    assert [name for name, _ in read] == ["_hash", "read_case"] * 2
    assert [str(given[0]) for name, given in read if name == "_hash"] == [str(case.image) for case in cases]
    assert [new for _, new in made] == [True, True]
    assert prepare_all(cases, [ToCanonical()]) == [(folder, False) for folder, _ in made]
    assert len(read) == 4


def test_observed_places_are_some_of_the_voxels_on_which_somebody_decided():
    label = np.random.default_rng(0).integers(0, 3, (30, 20, 25))
    label[4:9] = 0
    places = some_observed(label)
    assert len(np.unique(places, axis=0)) == len(places) == PLACES_PER_ROW
    assert (label[tuple(places.T)] > 0).all()
    assert np.histogram(places[:, 1], 4)[0] == pytest.approx([PLACES_PER_ROW / 4] * 4, rel=0.2)
    few = label * (np.arange(30) == 12)[:, None, None]
    assert sorted(map(tuple, some_observed(few))) == sorted(map(tuple, np.argwhere(few)))
    assert len(some_observed(np.ones((3, 4, 5), int))) == len(some_observed(np.zeros((3, 4, 5), int))) == 0


def test_half_a_file_is_refused_by_name(tmp_path):
    whole = (Path(lightning_atlas.__file__).parent / "data" / "embedded" / "spine_mr.nii.gz").read_bytes()
    half = tmp_path / "half.nii.gz"
    half.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.nii\.gz is damaged or cut off"):
        read_case(Case("half", "predict", half))


@pytest.mark.parametrize("processes", [1, 2])
def test_all_scans_that_cannot_be_prepared_are_told_at_once(tmp_path, processes):
    whole = (Path(lightning_atlas.__file__).parent / "data" / "embedded" / "spine_mr.nii.gz").read_bytes()
    cases = []
    for number in range(6):
        path = tmp_path / f"scan{number}.nii.gz"
        path.write_bytes(whole if number in (1, 3) else whole[: len(whole) // (2 + number)])
        cases.append(Case(path.name, "predict", path))
    with pytest.raises(ValueError, match="4 of 6 scans cannot be prepared") as told:
        prepare_all(cases, [], processes)
    lines = str(told.value).splitlines()
    assert len(lines) == 5
    assert all("is damaged or cut off" in line for line in lines[1:4])
    assert "and 1 more" in lines[4]
    assert sum(new for _, new in prepare_all([cases[1], cases[3]], [])) == 0


@pytest.mark.parametrize(("spacing", "expected"), [(3.0, 2), (10.0, 2), (5.0, 2)])
def test_resampling_invents_no_annotated_plane(spacing, expected):
    (case,) = SimulatedCohort("chest_ct", train=1, val=0, test=0, displacement_mm=1.0, drawn_planes=[12, 22]).cases()
    transforms = [ToCanonical(), Resample((3.0, 3.0, spacing))]
    prepared, _ = prepare(case, transforms)
    assert len(planes(prepared)) == expected
    heights = [prepared.affine[2][3] + prepared.affine[2][2] * plane for plane in planes(prepared)]
    drawn = [prepared.file_affine[2][3] + prepared.file_affine[2][2] * plane for plane in (12, 22)]
    assert heights == pytest.approx(drawn, abs=spacing / 2 + 1e-6)


def test_planes_between_two_annotated_neighbours_are_annotated():
    (case,) = SimulatedCohort("chest_ct", train=1, val=0, test=0, displacement_mm=1.0, drawn_planes=[12, 13]).cases()
    prepared, _ = prepare(case, [ToCanonical(), Resample((3.0, 3.0, 2.0))])
    heights = np.array([prepared.affine[2][3] + prepared.affine[2][2] * plane for plane in planes(prepared)])
    low, high = (prepared.file_affine[2][3] + prepared.file_affine[2][2] * plane for plane in (12, 13))
    assert len(heights) >= 5
    assert heights.min() >= low - 1 - 1e-6
    assert heights.max() <= high + 1 + 1e-6
