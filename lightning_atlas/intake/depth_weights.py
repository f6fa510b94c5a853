"""Weights of a stack of slices, taken for a stack of another height."""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lightning_atlas.intake.adapters import Adapter, Pair
from lightning_atlas.intake.inflation import Taken

How = Literal["centre", "linear"]


@dataclass(frozen=True)
class DepthWeights(Adapter):
    """Take the weights that a group transform has for each slice for another number of slices.

    `centre`: the old weights in the middle of zeros, or the middle of them: what the new slices hold changes nothing,
    so the slices must lie as far apart as before. `linear`: interpolated, each old weight shared among the new slices
    around it, so that the sum of a channel's weights is kept: the same stretch of the body in finer or coarser slices.

    Args:
        how: `centre` or `linear`.
        names: Regular expression of the names of such weights in the network.
    """

    how: How = "centre"
    names: str = r"(^|\.)collapse\.\d+\.weight$"

    def take(self, pair: Pair) -> Taken | None:
        """Return the weights for the network's slices; other tensors are left alone.

        Raises:
            ValueError: One number of slices is even and the other odd, so that there is no centre.
        """
        ours, theirs = pair.target.shape, pair.tensor.shape
        one_for_each_slice = len(theirs) == len(ours) == 4 and theirs[0] == ours[0] and theirs[2:] == ours[2:] == (1, 1)
        if not one_for_each_slice or theirs[1] == ours[1] or not re.search(self.names, pair.name):
            return None
        try:
            value = weights_for(pair.tensor[:, :, 0, 0].float(), ours[1], self.how)
        except ValueError as error:
            raise ValueError(f"{pair.name}: {error}") from error
        words = {"centre": "its centre, zeros around it", "linear": "linear, the sum of a channel kept"}
        return Taken(value[:, :, None, None], f"weights of {theirs[1]} -> {ours[1]} slices: {words[self.how]}")


def weights_for(weights: Float[Tensor, "channels old"], depth: int, how: How) -> Float[Tensor, "channels new"]:
    """Return the weights of each channel's slices for another number of slices; `DepthWeights` has the rules.

    Args:
        weights: One for each slice.
        depth: The new number of slices.
        how: `centre` or `linear`.

    Raises:
        ValueError: A centre is asked for, and one number is even and the other odd.
    """
    old = weights.shape[1]
    if how == "linear":
        # A row for each old slice: how much of a weight there comes to lie on each new one.
        spread = F.interpolate(torch.eye(old)[None, :, None], (1, depth), mode="bilinear", antialias=True)[0, :, 0]
        return weights @ (spread / spread.sum(1, keepdim=True))
    if (depth - old) % 2:
        raise ValueError(
            f"{old} slices have no centre among {depth}: give DepthWeights how: linear, or the network a depth that is "
            f"{'odd' if old % 2 else 'even'}"
        )
    border = (depth - old) // 2
    return F.pad(weights, (border, border))
