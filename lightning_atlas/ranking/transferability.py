"""Scores of features that need no training: LEEP, and class consistency with feature variety."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional as F

from lightning_atlas.ranking.evidence import Features, Resamples

FEWEST = 5
"""Voxels of a class from which its distribution in a unit is estimated."""
NEAR = 1e-6
"""Directions are taken to lie this far apart at least."""


class LevelFeatures(NamedTuple):
    """Features of one unit at one level of the decoder, each voxel of its grid at most once.

    Args:
        features: At some voxels.
        members: Of which classes these are.
    """

    features: Features
    members: Bool[Tensor, "voxels classes"]


def leep(
    probabilities: Float[Tensor, "voxels outputs"],
    labels: Integer[Tensor, " voxels"],
    counts: Float[Tensor, " voxels"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean log-probability of the labels, as they follow from a source head's outputs; more is better.

    Source: Nguyen et al., "LEEP: A New Measure to Evaluate Transferability of Learned Representations", 2020,
    https://arxiv.org/abs/2002.12462.

    Args:
        probabilities: Of the source's own classes.
        labels: Of the new task, from 0.
        counts: How often each voxel stands in the sample; once each by default.
    """
    counts = torch.ones(len(labels), dtype=probabilities.dtype) if counts is None else counts
    joint = probabilities.new_zeros(int(labels.max()) + 1, probabilities.shape[1])
    joint.index_add_(0, labels, probabilities * counts[:, None])
    given_output = joint / joint.sum(0).clamp_min(torch.finfo(joint.dtype).tiny)
    expected = (probabilities @ given_output.T).gather(1, labels[:, None]).squeeze(1)
    kept = counts > 0
    return (counts[kept] * expected[kept].log()).sum() / counts.sum()


def distribution_over_outputs(
    logits: Float[Tensor, "voxels outputs"], overlapping: bool
) -> Float[Tensor, "voxels outputs_and_none"]:
    """Return the probabilities of a head's outputs, which add up to 1.

    Of outputs that may overlap (sigmoid) these are the probabilities of each alone and of none, given that no two are
    true: the softmax over the logits and a 0.
    """
    return (F.pad(logits, (1, 0)) if overlapping else logits).double().softmax(dim=1)


def wasserstein(one: Float[Tensor, "voxels features"], other: Float[Tensor, "others features"]) -> Float[Tensor, ""]:
    """Return the 2-Wasserstein distance between the Gaussians of two samples' means and covariances.

    Source: Dowson and Landau, "The Frechet distance between multivariate normal distributions", 1982,
    https://doi.org/10.1016/0047-259X(82)90077-X. The trace of the root of the product of the covariances is the nuclear
    norm of the product of the centred samples, also where there are fewer voxels than features.
    """
    first, second = ((each - each.mean(0)) / (len(each) - 1) ** 0.5 for each in (one, other))
    squares = first.square().sum() + second.square().sum()
    spread = squares - 2 * torch.linalg.matrix_norm(first @ second.T, ord="nuc")
    return ((one.mean(0) - other.mean(0)).square().sum() + spread.clamp_min(0)).sqrt()


def feature_variety(features: Features) -> float:
    """Return the harmonic mean of the distances between all directions: the inverse of their potential energy.

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", 2018, https://arxiv.org/abs/1805.09298.
    """
    distances = torch.pdist(F.normalize(features, dim=1)).clamp_min(NEAR)
    return 1 / distances.reciprocal().mean().item() if len(distances) else torch.nan


def class_distances(units: Sequence[LevelFeatures], most: int = 100) -> Float[Tensor, "classes units units"]:
    """Return how far a class's features in one unit lie from those in another; NaN where one has too few voxels.

    Args:
        units: At one level.
        most: Voxels of a class and unit that are looked at: of more, these lie evenly over all windows.
    """
    # One scale for all units, since networks compute at any.
    scale = torch.cat([each.features for each in units]).square().sum(1).mean().sqrt().clamp_min(NEAR)
    classes = units[0].members.shape[1]
    found = torch.full((classes, len(units), len(units)), torch.nan, dtype=torch.float64)
    for number in range(classes):
        inside = [_thinned(each.features[each.members[:, number]], most) / scale for each in units]
        enough = [unit for unit, features in enumerate(inside) if len(features) >= FEWEST]
        for one, other in combinations(enough, 2):
            found[number, one, other] = wasserstein(inside[one], inside[other])
    return found


def _thinned(features: Features, most: int) -> Float[Tensor, "kept features"]:
    """Return at most so many voxels, evenly spaced: they stand in the order of the windows that they are of."""
    return features[torch.linspace(0, len(features) - 1, min(most, len(features))).long()]


def cc_fv(levels: Sequence[Sequence[LevelFeatures]], resamples: Resamples) -> Float[Tensor, " resamples"]:
    """Return log(feature variety / class inconsistency), a mean over levels; more is better, NaN with a single unit.

    A class is consistent where its features are distributed alike in all units (a mean over classes of the mean
    distance between pairs of units); features have variety where their directions fill the sphere (a mean over units).

    Source: Yang et al., "Pick the Best Pre-trained Model: Towards Transferability Estimation for Medical Image
    Segmentation", 2023, https://arxiv.org/abs/2307.11958.
    Differs: re-derived from the definition and not from the released code, which adds terms of other sign and scale.
    The distance is not squared and features are first divided by their root mean square, so that neither scale nor
    offset of a level counts; levels are averaged, so that networks with more of them can be compared.

    Args:
        levels: For each level the features of all units.
        resamples: Counts of the units.
    """
    counts = resamples.double()
    pairs = (counts[:, :, None] * counts[:, None, :]).flatten(1)
    scores = []
    for units in levels:
        distances = class_distances(units).flatten(1)
        known = (~distances.isnan()).double()
        inconsistency = ((pairs @ distances.nan_to_num().T) / (pairs @ known.T)).nanmean(1)
        varieties = torch.tensor([feature_variety(each.features) for each in units], dtype=torch.float64)
        seen = (~varieties.isnan()).double()
        variety = (counts @ varieties.nan_to_num()) / (counts @ seen)
        # Features that are the same everywhere are as consistent as they are useless.
        scores.append(torch.where(inconsistency > NEAR, (variety / inconsistency).log(), torch.nan))
    return torch.stack(scores).nanmean(0) if scores else torch.full((len(resamples),), torch.nan, dtype=torch.float64)
