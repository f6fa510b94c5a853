"""How alike two representations of the same voxels are."""

import torch
from jaxtyping import Float
from torch import Tensor

LEAST = 4
"""Samples that the estimate needs."""

Samples = Float[Tensor, "samples features"]
Gram = Float[Tensor, "samples samples"]


def linear_cka(before: Samples, after: Float[Tensor, "samples other_features"]) -> float:
    """Return the linear centred kernel alignment of two representations of the same samples, free of bias.

    It is 1 for representations that differ by a rotation, a shift and one factor, and near 0 for unrelated ones: also
    where there are more features than samples, as in deep layers, of which the plain estimate says up to 1. It may fall
    a little below 0. NaN where one of the two is constant.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019,
    https://arxiv.org/abs/1905.00414; the unbiased estimate of HSIC by Song et al., "Feature Selection via Dependence
    Maximization", 2012, as Nguyen et al., 2021, https://arxiv.org/abs/2010.15327, use it for this alignment.

    Raises:
        ValueError: There are fewer than four samples.
    """
    if len(before) < LEAST:
        raise ValueError(f"the alignment is estimated from at least {LEAST} samples; these are {len(before)}")
    one, other = _gram(before), _gram(after)
    spread = _dependence(one, one) * _dependence(other, other)
    return float(_dependence(one, other) / spread.sqrt()) if spread > 0 else float("nan")


def _gram(samples: Samples) -> Gram:
    """Return the products of all pairs of samples, those of a sample with itself set to 0."""
    centred = samples.double() - samples.double().mean(0)  # changes no result, and keeps the products small
    return (centred @ centred.T).fill_diagonal_(0.0)


def _dependence(one: Gram, other: Gram) -> Float[Tensor, ""]:
    """Return the unbiased estimate of HSIC, up to a factor that depends on the number of samples alone."""
    count = len(one)
    sums = one.sum() * other.sum() / ((count - 1) * (count - 2))
    return (one * other).sum() + sums - 2 / (count - 2) * torch.dot(one.sum(0), other.sum(0))
