"""LEEP against a sum by hand, distances of Gaussians against closed forms, and the sign of CC-FV."""

import math

import pytest
import torch

from lightning_atlas.ranking.transferability import (
    LevelFeatures,
    cc_fv,
    class_distances,
    distribution_over_outputs,
    feature_variety,
    leep,
    wasserstein,
)

ONE = torch.ones(1, 3, dtype=torch.long)


def test_leep_by_hand():
    probabilities = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]).double()
    labels = torch.tensor([0, 0, 1])
    # P(label, output): rows (1.4, 0.6) / 3 and (0.1, 0.9) / 3; columns add up to 1.5 / 3 each
    expected = (
        math.log(0.8 * 1.4 / 1.5 + 0.2 * 0.6 / 1.5)
        + math.log(0.6 * 1.4 / 1.5 + 0.4 * 0.6 / 1.5)
        + math.log(0.1 * 0.1 / 1.5 + 0.9 * 0.9 / 1.5)
    ) / 3
    assert leep(probabilities, labels).item() == pytest.approx(expected)


def test_leep_is_0_where_outputs_are_the_labels_and_their_entropy_where_they_say_nothing():
    labels = torch.tensor([0, 0, 1, 2])
    assert leep(torch.eye(3).double()[[2, 2, 0, 1]], labels).item() == pytest.approx(0.0, abs=1e-12)
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert leep(torch.full((4, 5), 0.2).double(), labels).item() == pytest.approx(-entropy)


def test_leep_counts_voxels():
    probabilities, labels = torch.rand(6, 3).double().softmax(1), torch.tensor([0, 1, 2, 0, 1, 2])
    counts = torch.tensor([2.0, 0.0, 1.0, 1.0, 3.0, 0.0]).double()
    repeated = counts.long().tolist()
    rows = [n for n, times in enumerate(repeated) for _ in range(times)]
    assert leep(probabilities, labels, counts).item() == pytest.approx(leep(probabilities[rows], labels[rows]).item())


def test_sigmoid_outputs_are_a_distribution_given_that_no_two_are_true():
    logits = torch.tensor([[0.3, -1.2]])
    one, other = logits.double().sigmoid()[0].tolist()
    alone = [(1 - one) * (1 - other), one * (1 - other), other * (1 - one)]
    expected = [each / sum(alone) for each in alone]
    assert distribution_over_outputs(logits, overlapping=True)[0].tolist() == pytest.approx(expected)
    assert distribution_over_outputs(logits, overlapping=False).sum().item() == pytest.approx(1.0)


def test_the_distance_of_gaussians_of_one_dimension():
    one, other = torch.randn(50, 1).double() * 3 + 1, torch.randn(70, 1).double() - 2
    expected = math.hypot((one.mean() - other.mean()).item(), (one.std() - other.std()).item())
    assert wasserstein(one, other).item() == pytest.approx(expected)
    assert wasserstein(one, one).item() == pytest.approx(0.0, abs=1e-6)


def test_the_distance_of_gaussians_by_roots_of_covariances():
    one, other = torch.randn(40, 3).double() @ torch.randn(3, 3).double(), torch.randn(30, 3).double()

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ values.clamp_min(0).sqrt().diag() @ vectors.T

    first, second = torch.cov(one.T), torch.cov(other.T)
    between = root(root(first) @ second @ root(first))
    squared = (one.mean(0) - other.mean(0)).square().sum() + torch.trace(first + second - 2 * between)
    assert wasserstein(one, other).item() == pytest.approx(squared.sqrt().item())


def test_fewer_voxels_than_features_are_as_many_in_the_space_that_they_fill():
    one, other = torch.randn(6, 2).double(), torch.randn(7, 2).double()
    turned = torch.linalg.qr(torch.randn(9, 9).double())[0][:2]
    assert wasserstein(one @ turned, other @ turned).item() == pytest.approx(wasserstein(one, other).item())


def test_variety_is_the_harmonic_mean_distance_of_directions():
    triangle = torch.tensor([[5.0, 0.0], [0.0, 0.1], [-1.0, 0.0]])
    distances = [math.sqrt(2), math.sqrt(2), 2]
    assert feature_variety(triangle) == pytest.approx(3 / sum(1 / each for each in distances))


def unit(features, classes):
    return LevelFeatures(features, torch.nn.functional.one_hot(classes, 2).bool())


def units(shift=0.0, direction_spread=1.0):
    """Return three units of two classes; a class moves by `shift` from unit to unit."""
    classes = torch.arange(80) % 2
    found = []
    for number in range(3):
        features = torch.randn(80, 4).double() * direction_spread + 3.0 * (1 - direction_spread)
        features[:, 0] += 2 * classes + shift * number
        found.append(unit(features, classes))
    return found


def test_more_is_better_classes_that_lie_elsewhere_in_each_case_score_less():
    scores = [cc_fv([units(shift)], ONE).item() for shift in (0.0, 1.0, 3.0)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] - scores[2] > 0.5


def test_more_is_better_directions_that_fill_the_sphere_score_more():
    # Both classes of all units are equally far apart; one bundle of directions is narrow, the other is not.
    base = torch.nn.functional.normalize(torch.randn(80, 4).double(), dim=1)
    narrow = torch.nn.functional.normalize(torch.tensor([4.0, 0, 0, 0]).double() + base, dim=1)
    classes = torch.arange(80) % 2
    assert feature_variety(base) > 2 * feature_variety(narrow)
    scores = []
    for directions in (base, narrow):
        cases = [unit(directions + number * 0.3 * torch.eye(4).double()[1], classes) for number in range(3)]
        scores.append(cc_fv([cases], ONE).item())
    assert scores[0] > scores[1]


def test_the_score_has_no_scale_and_is_a_mean_over_levels():
    level, other = units(1.0), units(2.0)
    scaled = [LevelFeatures(1000 * each.features, each.members) for each in level]
    alone = [cc_fv([each], ONE).item() for each in (level, other)]
    assert cc_fv([scaled], ONE).item() == pytest.approx(alone[0])
    assert cc_fv([level, other], ONE).item() == pytest.approx(sum(alone) / 2)


def test_a_resample_weighs_pairs_of_units():
    level = units(1.0)
    twice_the_first = torch.tensor([[2, 1, 0]])
    assert cc_fv([level], twice_the_first).item() == pytest.approx(
        cc_fv_by_hand(level, [0, 1], [feature_variety(level[n].features) for n in (0, 0, 1)])
    )


def cc_fv_by_hand(level, pair, varieties):
    distances = class_distances(level)[:, *pair]
    return math.log(sum(varieties) / len(varieties) / distances.mean().item())


def test_one_unit_or_features_without_difference_have_no_score():
    assert cc_fv([units()[:1]], torch.ones(1, 1).long()).isnan().all()
    flat = [unit(torch.ones(20, 3).double(), torch.arange(20) % 2) for _ in range(3)]
    assert cc_fv([flat], ONE).isnan().all()


def test_voxels_of_all_windows_are_compared_where_there_are_more_than_are_looked_at():
    windows = [torch.randn(100, 3).double() + 10 * number for number in range(4)]
    elsewhere = [windows[0], *(each + 50 for each in windows[1:])]
    level = [LevelFeatures(torch.cat(each), torch.ones(400, 1).bool()) for each in (windows, elsewhere)]
    distance, whole = (class_distances(level, most)[0, 0, 1].item() for most in (100, 400))
    assert distance == pytest.approx(whole, rel=0.05)


def test_a_class_with_few_voxels_in_a_unit_is_not_compared_there():
    few = units()
    few[1].members[:, 1] = False
    distances = class_distances(few)
    assert distances[[1, 1, 0], [0, 0, 0], [1, 2, 1]].isnan().tolist() == [True, False, False]
