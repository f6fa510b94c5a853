import math

import pytest
import torch

from lightning_atlas import scan_metrics
from lightning_atlas.scan_metrics import CaseTargets, ScanResult


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(scan_metrics, "DRAWS", 40)


def result(kind, values, target):
    return ScanResult(kind, torch.arange(len(values)), torch.as_tensor(values).double(), torch.as_tensor(target))


def ordered_pairs(chances, truth):
    """AUROC by its meaning: the share of pairs (one with, one without) in which the one with has the higher chance."""
    with_, without = chances[truth], chances[~truth]
    pairs = with_[:, None] - without[None, :]
    return ((pairs > 0).double() + 0.5 * (pairs == 0)).mean().item()


def test_auroc_is_the_share_of_pairs_in_order_and_unknown_cases_are_left_out():
    chances = torch.rand(40, 3).softmax(1)
    target = torch.randint(0, 3, (40,))
    target[::7] = -1
    found = result("class", chances, target)
    known = target >= 0
    expected = [ordered_pairs(chances[known, place].double(), target[known] == place) for place in range(3)]
    assert found.per_output()["auroc"] == pytest.approx(expected, abs=1e-6)
    assert found.overall()["auroc"] == pytest.approx(sum(expected) / 3, abs=1e-6)
    right = chances[known].argmax(1) == target[known]
    assert found.overall()["accuracy"] == pytest.approx(right.double().mean().item(), abs=1e-6)
    assert found.mean == found.overall()["accuracy"]
    assert [row["n"] for row in found.rows("abc")] == [int(known.sum())] * 4


def test_errors_of_values_are_in_their_units_and_unknown_ones_are_left_out():
    truth = torch.tensor([[60.0, 1.0], [70.0, math.nan], [80.0, 3.0]]).double()
    found = result("values", torch.tensor([[62.0, 1.0], [70.0, 9.0], [76.0, 2.0]]), truth)
    assert found.per_output()["mae"] == pytest.approx([2.0, 0.5])
    assert found.per_output()["r2"] == pytest.approx([1 - (4 + 0 + 16) / 200, 1 - 1 / 2])
    assert found.headline == "mae"
    assert found.scores(["age", "kg"])["mae/kg"] == pytest.approx(0.5)


def test_of_labels_each_is_scored_where_it_is_known():
    truth = torch.tensor([[1.0, 0.0], [0.0, math.nan], [1.0, math.nan]]).double()
    found = result("labels", torch.tensor([[0.9, 0.2], [0.1, 0.9], [0.4, 0.9]]), truth).per_output()
    assert found["accuracy"] == pytest.approx([2 / 3, 1.0])
    assert found["auroc"][0] == 1.0
    assert math.isnan(found["auroc"][1])  # nobody has the label: there is nothing to tell apart


def test_average_precision_of_a_known_ranking():
    """Of the cases by falling chance + - + -: (1/1 + 2/3) / 2."""
    truth = torch.tensor([[1.0], [0.0], [1.0], [0.0]]).double()
    found = result("labels", torch.tensor([[0.9], [0.8], [0.7], [0.1]]), truth)
    assert found.per_output()["auprc"] == pytest.approx([(1 + 2 / 3) / 2])


def test_intervals_hold_the_score_and_shrink_with_more_cases():
    def width(cases):
        truth = torch.randn(cases, 1).double()
        row = result("values", truth + torch.randn(cases, 1), truth).rows(["x"])[0]
        assert row["mae_low"] <= row["mae"] <= row["mae_high"]
        return row["mae_high"] - row["mae_low"]

    assert width(200) < width(10)


def test_a_single_case_has_a_score_and_no_interval():
    found = result("class", [[0.2, 0.8]], [1])
    last = found.rows(["a", "b"])[-1]
    assert last["accuracy"] == 1.0
    assert math.isnan(last["accuracy_low"])
    assert math.isnan(last["auroc"])
    assert "bootstrap" not in found.table(["a", "b"])
    assert found.table(["a", "b"]).isascii()


def test_a_case_that_a_sampler_repeated_counts_once():
    metric = CaseTargets("class", 2)
    metric.update(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 1]), torch.tensor([1, 0]))
    metric.update(torch.tensor([[0.9, 0.1]]), torch.tensor([0]), torch.tensor([1]))
    found = metric.compute()
    assert found.index.tolist() == [0, 1]
    assert found.target.tolist() == [1, 0]
    assert found.mean == 1.0
    parts = found.per_dataset(["north", "south"])
    assert [part.target.tolist() for part in parts.values()] == [[1], [0]]


def test_the_true_class_may_be_among_the_five_likeliest():
    values = torch.rand(60, 8).softmax(1)
    target = torch.randint(0, 8, (60,))
    target[::9] = -1
    found = result("class", values, target)
    true = target.tolist()
    known = [place for place in range(60) if true[place] >= 0]
    ranks = {place: sorted(range(8), key=lambda each: -values[place, each]).index(true[place]) for place in known}
    assert found.measures == ("accuracy", "top5", "auroc", "auprc")
    for name, count in (("accuracy", 1), ("top5", 5)):
        inside = {place: rank < count for place, rank in ranks.items()}
        assert found.overall()[name] == pytest.approx(sum(inside.values()) / len(known))
        third = [inside[place] for place in known if true[place] == 3]
        assert found.per_output()[name][3] == pytest.approx(sum(third) / len(third))


def test_five_of_five_classes_are_no_score():
    assert "top5" not in result("class", torch.rand(4, 5), [0, 1, 2, 3]).measures


def test_a_network_that_tells_nothing_apart_does_not_hit_by_ties():
    found = result("class", torch.full((100, 10), 0.1), torch.arange(100) % 10)
    assert found.overall()["accuracy"] == pytest.approx(0.1)
    assert found.overall()["top5"] == pytest.approx(0.5)


def test_of_a_thousand_classes_the_report_is_short_and_the_rows_are_whole():
    target = torch.randint(0, 1000, (200,))
    values = torch.rand(200, 1000)
    values[torch.arange(150), target[:150]] = 2.0
    found, names = result("class", values, target), [f"n{number:05}" for number in range(1000)]
    assert found.scores(names).keys() == {"accuracy", "top5"}
    assert found.scores(names)["accuracy"] >= 0.75
    rows = found.rows(names)
    assert len(rows) == 1001
    assert rows[-1]["accuracy_low"] < rows[-1]["accuracy"] < rows[-1]["accuracy_high"]
    assert len(found.table(names).splitlines()) == 4
