"""Decisions about patients, against worked examples and against counting by hand."""

import numpy as np
import pytest
import torch

from lightning_atlas.decisions import (
    CaseEvidence,
    Evidence,
    accuracy,
    any_lesion,
    auc_with_interval,
    evidence,
    largest_component,
    per_patient,
)

SHAPE = (12, 12, 12)


def box(*slices):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[slices] = True
    return mask


ORGAN = box(slice(0, 6), slice(0, 6), slice(0, 6))
TOUCHING = box(slice(6, 8), slice(0, 4), slice(0, 4))
"""32 voxels that share faces with the organ."""


def score(lesion, least_mm3=0.0, organ=ORGAN, probability=None, voxel_mm3=1.0):
    probability = np.linspace(0.1, 0.9, lesion.size).reshape(SHAPE) if probability is None else probability
    return evidence(probability, lesion, organ, least_mm3, voxel_mm3)


def test_a_component_counts_only_where_it_touches_the_organ_and_has_the_least_volume():
    probability = np.where(TOUCHING, 0.7, 0.2)
    assert score(TOUCHING, 32.0, probability=probability) == pytest.approx(0.7)
    assert score(TOUCHING, 33.0, probability=probability) == 0.0
    apart = np.roll(TOUCHING, 1, axis=0)  # one voxel of air between
    assert score(apart, probability=probability) == 0.0
    corner = box(slice(6, 9), slice(6, 9), slice(6, 9))  # touches by a corner only, as published
    assert score(corner) > 0
    inside = box(slice(1, 3), slice(1, 3), slice(1, 3))
    assert score(inside, 8.0) > 0


@pytest.mark.parametrize("side_mm", [0.5, 0.7, 1.5])
def test_a_size_is_a_volume_whatever_the_voxels(side_mm):
    voxel_mm3 = float(torch.full((3,), side_mm).double().prod())  # spacings come in float32
    assert score(TOUCHING, 32 * side_mm**3, voxel_mm3=voxel_mm3) > 0
    assert score(TOUCHING, 32.5 * side_mm**3, voxel_mm3=voxel_mm3) == 0.0


@pytest.mark.parametrize("side_mm", [0.5, 1.5])
def test_a_ball_of_5_mm_counts_by_the_published_sizes_on_their_grid_and_on_that_of_the_starts(side_mm):
    sides = (np.arange(round(12 / side_mm)) + 0.5) * side_mm - 6
    i, j, k = np.meshgrid(sides, sides, sides, indexing="ij")
    ball = i**2 + j**2 + k**2 < 2.5**2
    organ = (i < -2) & ~ball
    for voxels in (30, 40, 35):
        assert evidence(np.where(ball, 0.7, 0.0), ball, organ, voxels * 0.5**3, side_mm**3) == pytest.approx(0.7)


def test_what_lies_in_components_that_do_not_count_is_not_looked_at():
    far = box(slice(10, 12), slice(10, 12), slice(10, 12))
    probability = np.where(far, 0.99, np.where(TOUCHING, 0.6, 0.0))
    assert score(TOUCHING | far, probability=probability) == pytest.approx(0.6)
    assert score(TOUCHING & False, probability=probability) == 0.0


def test_the_organ_is_its_largest_component():
    crumb = box(slice(10, 11), slice(10, 11), slice(10, 11))
    assert (largest_component(ORGAN | crumb) == ORGAN).all()
    beside = box(slice(11, 12), slice(10, 11), slice(10, 11))
    assert score(beside, organ=ORGAN | crumb) == 0.0
    assert not largest_component(ORGAN & False).any()
    assert score(TOUCHING, organ=ORGAN & False) == 0.0


def test_a_patient_has_the_highest_score_of_the_scans_in_which_a_lesion_is_looked_for():
    found = Evidence(
        np.array([0, 1, 2, 3]),
        np.array([[0.2, 0.9], [0.8, 0.1], [0.0, 0.3], [0.5, 0.5]]),
        np.array([[0, 1], [1, 0], [0, -1], [0, 0]]),
    )
    judged = np.array([[True, False], [True, True], [True, True], [True, False]])
    names, scores, truth = per_patient(found, ["a", "a", "b", "c"], judged)
    assert names == ["a", "b", "c"]
    assert np.array_equal(scores, [[0.8, 0.1], [0.0, 0.3], [0.5, np.nan]], equal_nan=True)
    assert truth.tolist() == [[1, 1], [0, -1], [0, 0]]
    highest, any_truth = any_lesion(scores, truth)
    assert highest.tolist() == [0.8, 0.3, 0.5]
    assert any_truth.tolist() == [1, -1, 0]


def test_the_area_under_the_curve_is_the_share_of_ordered_pairs():
    random = np.random.default_rng(0)
    positives, negatives = random.normal(1, 1, 40).round(1), random.normal(0, 1, 60).round(1)
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    auc, low, high = auc_with_interval(positives, negatives)
    assert auc == pytest.approx(np.mean(pairs))
    assert low < auc < high
    assert auc_with_interval(np.ones(3), np.zeros(4))[0] == 1.0
    assert np.isnan(auc_with_interval(np.ones(3), np.zeros(0))[0])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    true = 0.7602  # of normals one standard deviation apart: the normal distribution at 1 / sqrt(2)
    inside = 0
    for _ in range(40):
        _, low, high = auc_with_interval(random.normal(1, 1, 30), random.normal(0, 1, 30))
        inside += low <= true <= high
    assert inside >= 33


def test_counts_are_of_patients_of_whom_all_is_known():
    scores = np.array([0.9, 0.0, 0.4, 0.0, np.nan, 0.7])
    truth = np.array([1, 1, 0, 0, 1, -1])
    found = accuracy(scores, truth)
    assert (found.positives, found.negatives) == (2, 2)
    assert found.sensitivity[0] == found.specificity[0] == found.ppv[0] == 0.5
    assert found.auc[0] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    # Wilson's interval of 1 in 2, by its formula
    z = 1.959964
    half = z / (1 + z**2 / 2) * np.sqrt(1 / 8 + z**2 / 16)
    assert found.sensitivity[1:] == pytest.approx((0.5 - half, 0.5 + half), abs=1e-5)


def test_a_case_that_a_sampler_repeats_counts_once():
    metric = CaseEvidence(1)
    for index, value in ((2, 0.5), (0, 0.1), (2, 0.5)):
        metric.update(torch.tensor([index]), torch.tensor([[value]]), torch.tensor([[1]]))
    index, score, truth = metric.compute()
    assert index.tolist() == [0, 2]
    assert score.flatten().tolist() == pytest.approx([0.1, 0.5])
    assert truth.flatten().tolist() == [1, 1]
