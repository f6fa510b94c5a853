"""The evidence against its direct maximum, the regression against a direct solution, areas against counting."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from lightning_atlas.ranking.evidence import areas_under_roc, logme, maximise_evidence, moments, probe, summed


def some(voxels=60, features=4, classes=2, noise=0.5):
    values = torch.randn(voxels, features).double()
    signal = values @ torch.randn(features, classes).double() + noise * torch.randn(voxels, classes).double()
    return values, (signal > 0).long()


def direct_log_evidence(values, labels):
    """Maximise log N(labels; 0, 1 / noise + values values' / prior) over both precisions by gradient."""
    logs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    steps = torch.optim.LBFGS([logs], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        steps.zero_grad()
        prior, noise = logs.exp()
        covariance = torch.eye(len(values)).double() / noise + values @ values.T / prior
        value = -MultivariateNormal(torch.zeros(len(values)).double(), covariance).log_prob(labels.double())
        value.backward()
        return value

    steps.step(loss)
    return -loss().item(), *logs.exp().tolist()


def test_the_evidence_is_its_direct_maximum():
    values, states = some()
    found = maximise_evidence(moments(values, states))
    for number in range(2):
        greatest, prior, noise = direct_log_evidence(values, states[:, number])
        assert found.per_voxel[number].item() == pytest.approx(greatest / 60, abs=1e-9)
        assert (found.prior[number].item(), found.noise[number].item()) == pytest.approx((prior, noise), rel=1e-3)
    one = torch.ones(1, 1, dtype=torch.long)
    assert logme([moments(values, states)], one).item() == pytest.approx(found.per_voxel.mean().item())


def test_voxels_that_nobody_decided_on_count_for_nothing():
    values, states = some()
    states[20:, 1] = -1
    found = maximise_evidence(moments(values, states)).per_voxel
    apart = [maximise_evidence(moments(values[:n], states[:n, [c]])).per_voxel.item() for c, n in ((0, 60), (1, 20))]
    assert found.tolist() == pytest.approx(apart)


def test_features_that_say_more_have_more_evidence_at_any_scale():
    values, states = some(noise=0.1)
    one = torch.ones(1, 1, dtype=torch.long)
    good, scaled, noise = (
        logme([moments(each, states)], one).item() for each in (values, 1000 * values, torch.randn(60, 4).double())
    )
    assert good > noise
    assert scaled == pytest.approx(good, abs=1e-6)


def test_a_unit_that_is_drawn_twice_is_its_voxels_twice():
    values, states = some()
    halves = [moments(values[:30], states[:30]), moments(values[30:], states[30:])]
    twice = torch.cat([values, values[:30]]), torch.cat([states, states[:30]])
    for ours, theirs in zip(summed(halves, torch.tensor([2, 1])), moments(*twice), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("column", [0, 1])
def test_a_class_of_one_label_has_no_evidence(column):
    values, states = some()
    states[:, 1] = column
    found = maximise_evidence(moments(values, states)).per_voxel
    assert [math.isnan(each) for each in found] == [False, True]


def test_the_probe_is_ridge_regression_on_the_other_units():
    units = [some(40), some(40), some(40)]
    values, states = zip(*units, strict=True)
    areas = probe([moments(*each) for each in units], values, states)
    for held in range(3):
        values, states = (torch.cat([each[n] for m, each in enumerate(units) if m != held]) for n in (0, 1))
        for number in range(2):
            _, prior, noise = direct_log_evidence(values, states[:, number])
            rows = torch.cat([values, math.sqrt(prior / noise) * torch.eye(4).double()])
            targets = torch.cat([states[:, number].double(), torch.zeros(4).double()])
            weights = torch.linalg.lstsq(rows, targets[:, None]).solution[:, 0]
            rating, inside = units[held][0] @ weights, units[held][1][:, number] == 1
            expected = (rating[inside][:, None] > rating[~inside]).double().mean()
            assert areas[held, number].item() == pytest.approx(expected.item(), abs=1e-3)


def test_areas_count_pairs_whatever_the_scale_of_the_rating():
    rating = torch.tensor([[-700.0, 3.0], [900.0, 3.0], [800.0, 5.0], [0.0, 4.0]]).double()
    states = torch.tensor([[0, 1], [1, 0], [0, 1], [-1, 1]])
    # of the first class: 900 is above -700 and 800; of the second: one of the three ties, two are above
    assert areas_under_roc(rating, states).tolist() == pytest.approx([1.0, (0.5 + 1 + 1) / 3])
    assert areas_under_roc(rating, torch.ones(4, 2).long()).isnan().all()
