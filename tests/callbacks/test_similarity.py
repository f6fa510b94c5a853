import math

import pytest
import torch
from torch import Tensor

from lightning_atlas.callbacks.similarity import linear_cka


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(draw(size, size, seed=7)).Q


def hsic_of_centred_grams(one: Tensor, other: Tensor) -> Tensor:
    """The plain estimate: the trace of the product of the doubly centred Gram matrices (Gretton et al. 2005)."""
    count = len(one)
    centring = torch.eye(count, dtype=torch.double) - 1 / count
    return torch.trace(centring @ one @ one.T @ centring @ other @ other.T) / (count - 1) ** 2


def plain_cka(one: Tensor, other: Tensor) -> float:
    spread = hsic_of_centred_grams(one, one) * hsic_of_centred_grams(other, other)
    return float(hsic_of_centred_grams(one, other) / spread.sqrt())


def hsic_over_distinct_samples(one: Tensor, other: Tensor) -> float:
    """The unbiased estimate by its definition, sample by sample: averages over tuples of samples all unlike."""
    k, m, count = one @ one.T, other @ other.T, len(one)
    every = range(count)
    pairs = [(k[i, j] * m[i, j]) for i in every for j in every if i != j]
    triples = [(k[i, j] * m[i, q]) for i in every for j in every for q in every if len({i, j, q}) == 3]
    fours = [k[i, j] * m[q, r] for i in every for j in every for q in every for r in every if len({i, j, q, r}) == 4]
    return float(sum(pairs) / len(pairs) + sum(fours) / len(fours) - 2 * sum(triples) / len(triples))


def test_it_is_the_average_over_tuples_of_unlike_samples():
    one, other = draw(7, 3), draw(7, 5, seed=1) + draw(7, 3)[:, :1]
    spread = hsic_over_distinct_samples(one, one) * hsic_over_distinct_samples(other, other)
    assert linear_cka(one, other) == pytest.approx(hsic_over_distinct_samples(one, other) / spread**0.5, abs=1e-9)


def test_with_many_samples_it_is_the_plain_estimate_from_centred_gram_matrices():
    one = draw(1500, 4) + 3.0
    other = one @ draw(4, 6, seed=1) + draw(1500, 6, seed=2)
    plain = plain_cka(one, other)
    assert 0.2 < plain < 0.95
    assert linear_cka(one, other) == pytest.approx(plain, abs=0.01)


@pytest.mark.parametrize("shape", [(50, 6), (20, 300)])
def test_it_is_one_for_the_same_turned_shifted_and_scaled(shape):
    one = draw(*shape)
    assert linear_cka(one, one) == pytest.approx(1.0)
    assert linear_cka(one, -3.7 * one @ rotation(shape[1]) + 2.0) == pytest.approx(1.0)
    other = draw(shape[0], 9, seed=1) + one[:, :1]
    assert linear_cka(one @ rotation(shape[1]), 5 * other) == pytest.approx(linear_cka(one, other))


def test_unlike_representations_are_near_zero_also_with_more_features_than_samples():
    pairs = [(draw(64, 768, seed=n), draw(64, 768, seed=100 + n)) for n in range(5)]
    assert all(abs(linear_cka(*pair)) < 0.05 for pair in pairs)
    assert plain_cka(*pairs[0]) > 0.8  # why the plain estimate is not used


def test_it_falls_as_one_drifts_from_the_other():
    one, noise = draw(200, 20), draw(200, 20, seed=1)
    drifted = [linear_cka(one, one + share * noise) for share in (0.0, 0.5, 1.0, 2.0)]
    assert drifted == sorted(drifted, reverse=True)


def test_what_does_not_vary_has_no_alignment():
    assert math.isnan(linear_cka(draw(8, 3), torch.ones(8, 3)))


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 4 samples; these are 3"):
        linear_cka(draw(3, 2), draw(3, 2))
