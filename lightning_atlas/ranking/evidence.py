"""How well features explain labels by linear regression with a prior: the evidence, and what it predicts elsewhere.

Each class stands against all else, so a voxel may be in several classes, and be unknown of some.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer, Num
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

Features = Float[Tensor, "voxels features"]
States = Integer[Tensor, "voxels classes"]
"""1: in the class, 0: not in it, -1: not known."""
EachFeatures = Float[Tensor, "_ features"]
EachStates = Integer[Tensor, "_ classes"]
"""The same of units, of which each has its own number of voxels."""
Resamples = Integer[Tensor, "resamples units"]
"""How often each unit (a patient, a scan, some planes) stands in each resample; the first row is the sample itself."""

ROUNDS, TOLERANCE = 200, 1e-6
AT_ONCE = 25
"""Resamples."""
LEAST, MOST = 1e-9, 1e9
"""Within these the precisions stay, so that features which explain all or nothing give finite numbers."""


class Moments(NamedTuple):
    """What regression needs to know of some voxels; those of disjoint voxels add up, and of resamples stand in a row.

    Args:
        gram: Of the features; for each class, or one for all where every voxel is known of every class.
        products: Of features and labels.
        positives: Voxels in each class.
        known: Voxels that are known to be in it or not.
    """

    gram: Float[Tensor, "*resamples classes_or_one features features"]
    products: Float[Tensor, "*resamples classes features"]
    positives: Float[Tensor, "*resamples classes"]
    known: Float[Tensor, "*resamples classes"]


class Evidence(NamedTuple):
    """The regression of each class at the precisions of the greatest evidence; NaN where a class has but one label.

    Args:
        per_voxel: Logarithm of the evidence, divided by the number of voxels.
        weights: Mean of the posterior: ridge regression, whose penalty is `prior` / `noise`.
        prior: Precision of the weights.
        noise: Precision of the labels.
    """

    per_voxel: Float[Tensor, "*resamples classes"]
    weights: Float[Tensor, "*resamples classes features"]
    prior: Float[Tensor, "*resamples classes"]
    noise: Float[Tensor, "*resamples classes"]


def moments(features: Features, states: States) -> Moments:
    """Return the moments of some voxels, in double precision."""
    values, known, positive = features.double(), (states >= 0).double(), (states == 1).double()
    whole = bool((states >= 0).all())
    gram = (values.T @ values)[None] if whole else torch.einsum("vc,vf,vg->cfg", known, values, values)
    return Moments(gram, positive.T @ values, positive.sum(0), known.sum(0))


def summed(units: Sequence[Moments], counts: Num[Tensor, "*resamples units"]) -> Moments:
    """Return the moments of all units, each as often as counted; of several resamples in a row."""
    parts = (torch.stack(torch.broadcast_tensors(*part)) for part in zip(*units, strict=True))
    return Moments(*(torch.tensordot(counts.double(), part, dims=1) for part in parts))


def maximise_evidence(whole: Moments) -> Evidence:
    """Return the regression at the precisions of weights and labels under which the labels are the most probable.

    Source: You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", 2021,
    https://arxiv.org/abs/2102.11005; the fixed point is MacKay's.
    """
    values, vectors = torch.linalg.eigh(whole.gram)
    values = values.clamp_min(0)
    products = (vectors.mT @ whole.products[..., None]).squeeze(-1)
    count, features = whole.known, whole.gram.shape[-1]
    prior, noise = torch.ones_like(count), torch.ones_like(count)
    for _ in range(ROUNDS):
        before = prior / noise
        mean, residual = _posterior(values, products, whole.positives, prior / noise)
        used = (values / (before[..., None] + values)).sum(-1)
        prior = (used / mean.square().sum(-1).clamp_min(LEAST**2)).clamp(LEAST, MOST)
        noise = ((count - used).clamp_min(LEAST) / residual.clamp_min(LEAST)).clamp(LEAST, MOST)
        if bool(((prior / noise) / before).log().abs().max() < TOLERANCE):
            break
    mean, residual = _posterior(values, products, whole.positives, prior / noise)
    log = count * (noise / (2 * torch.pi)).log() + features * prior.log() - noise * residual
    log = log - prior * mean.square().sum(-1) - (prior[..., None] + noise[..., None] * values).log().sum(-1)
    both = (whole.positives > 0) & (whole.positives < count)
    weights = (vectors @ mean[..., None]).squeeze(-1)
    nothing = torch.full_like(log, torch.nan)
    return Evidence(torch.where(both, log / 2 / count, nothing), weights, prior, noise)


def _posterior(
    values: Float[Tensor, "*resamples classes_or_one features"],
    products: Float[Tensor, "*resamples classes features"],
    squares: Float[Tensor, "*resamples classes"],
    penalty: Float[Tensor, "*resamples classes"],
) -> tuple[Float[Tensor, "*resamples classes features"], Float[Tensor, "*resamples classes"]]:
    """Return the mean of the posterior along the eigenvectors, and the sum of the squares that it leaves."""
    mean = products / (penalty[..., None] + values)
    residual = squares - 2 * (mean * products).sum(-1) + (values * mean.square()).sum(-1)
    return mean, residual


def logme(units: Sequence[Moments], resamples: Resamples) -> Float[Tensor, " resamples"]:
    """Return the logarithm of the greatest evidence for each voxel, as a mean over classes; more is better."""
    parts = (maximise_evidence(summed(units, counts)).per_voxel for counts in resamples.split(AT_ONCE))
    return torch.cat([part.nanmean(dim=1) for part in parts])


def probe(
    units: Sequence[Moments], features: Sequence[EachFeatures], states: Sequence[EachStates], folds: int = 5
) -> Float[Tensor, "units classes"]:
    """Return, for each unit and class, the area under the ROC curve of a regression on units of other folds.

    NaN where a unit does not have both labels of a class, or the others do not.

    Args:
        units: Moments of each unit.
        features: Of its voxels.
        states: Of its voxels.
        folds: At most; a unit is scored by the regression that has not seen its fold.
    """
    folds = min(folds, len(units))
    areas = torch.full((len(units), states[0].shape[1]), torch.nan, dtype=torch.float64)
    fold_of = torch.arange(len(units)) % folds
    for fold in range(folds if folds > 1 else 0):
        found = maximise_evidence(summed(units, (fold_of != fold).long()))
        for unit in (fold_of == fold).nonzero().flatten().tolist():
            predicted = features[unit].double() @ found.weights.T
            areas[unit] = torch.where(found.per_voxel.isnan(), torch.nan, areas_under_roc(predicted, states[unit]))
    return areas


def areas_under_roc(predicted: Float[Tensor, "voxels classes"], states: States) -> Float[Tensor, " classes"]:
    """Return for each class how often a voxel in it is rated above one that is not; NaN without both kinds."""
    areas = torch.full((states.shape[1],), torch.nan, dtype=torch.float64)
    for number, (rating, state) in enumerate(zip(predicted.T, states.T, strict=True)):
        if bool((state == 1).any()) and bool((state == 0).any()):
            known = state >= 0
            # A rank in the place of the rating: the library would take a rating outside [0, 1] for a logit, rounded.
            ranks = rating[known].unique(return_inverse=True)[1] / len(rating)
            areas[number] = binary_auroc(ranks, state[known]).double()
    return areas
