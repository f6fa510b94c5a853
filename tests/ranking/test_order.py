"""Scores of networks whose order is known, their intervals, and the places that these allow."""

from typing import Any

import pytest
import torch

from lightning_atlas.ranking.features import Labelled, Level, Reading
from lightning_atlas.ranking.order import Score, Unit, interval, not_distinguishable, places, resampled, score


def units(noise, shift=0.0, voxels=90, count=5):
    """Return units whose features show the class, more or less, somewhat otherwise in each unit."""
    generator, found = torch.Generator().manual_seed(1), []
    centres = torch.eye(3)
    for number in range(count):
        label = torch.arange(voxels) % 3
        features = centres[label] + noise * torch.randn(voxels, 3, generator=generator) + shift * number
        states = torch.nn.functional.one_hot(label, 3)
        reading = Reading(features, {"decoder.0": Level(features, torch.arange(voxels))}, 5 * features)
        found.append(Unit())
        found[-1].add(reading, Labelled(torch.zeros(voxels, 3).long(), states), torch.arange(voxels), number)
    return found


def test_features_that_show_the_classes_are_placed_first_by_every_score():
    scores = [score(units(noise, shift), 2, "softmax", resampled(5)) for noise, shift in ((0.3, 0.0), (1.5, 0.5))]
    for name in ("probe", "logme", "leep", "cc_fv"):
        assert places([each[name] for each in scores]) == [1, 2], name
        found: Any = [each[name] for each in scores]
        assert all(each.low <= each.value <= each.high for each in found)


def test_equal_features_cannot_be_told_apart():
    one, other = (score(units(0.5), 2, None, resampled(5)) for _ in range(2))
    assert one == other
    assert one["leep"] is None
    assert not_distinguishable([one["probe"], other["probe"]]) == [(0, 1)]


def test_a_single_unit_is_not_held_out_and_has_no_interval():
    found: Any = score(units(0.5, count=1), 2, "softmax", resampled(1))
    assert (found["probe"], found["cc_fv"]) == (None, None)
    assert found["logme"].low == found["logme"].high


def test_leep_takes_no_voxel_that_is_not_known_of_every_class():
    with_unknown = units(0.5)
    for unit in with_unknown:
        unit.states[0][:, 1] = -1
    assert score(with_unknown, 2, "softmax", resampled(5))["leep"] is None


def test_intervals_and_places():
    values = torch.cat([torch.tensor([7.0]), torch.arange(1.0, 102.0), torch.tensor([torch.nan])]).double()
    assert interval(values) == pytest.approx((7.0, 3.5, 98.5))
    assert interval(torch.tensor([torch.nan, 1.0])) is None
    scores = [Score(5.0, 4.0, 6.0), Score(3.0, 2.0, 4.5), None, Score(1.0, 0.5, 1.5)]
    assert places(scores) == [1, 1, None, 3]
    assert not_distinguishable(scores) == [(0, 1)]


def test_resamples_draw_as_many_units_and_begin_with_the_sample():
    counts = resampled(7)
    assert counts[0].tolist() == [1] * 7
    assert counts.sum(1).tolist() == [7] * len(counts)
    assert torch.equal(counts, resampled(7))
    assert counts[1:].double().mean(0).sub(1).abs().max() < 0.3


def test_a_cell_of_a_coarse_level_counts_once_with_all_its_classes():
    unit, features = Unit(), torch.tensor([[1.0], [1.0], [2.0]])
    reading = Reading(features, {"decoder.0": Level(features, torch.tensor([4, 4, 9]))}, features)
    states = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    for window in range(2):
        unit.add(reading, Labelled(torch.zeros(3, 3).long(), states), torch.arange(3), window)
    level = unit.level("decoder.0", 2)
    assert level.features.flatten().tolist() == [1.0, 2.0, 1.0, 2.0]
    assert level.members.tolist() == [[True, True], [False, False]] * 2
