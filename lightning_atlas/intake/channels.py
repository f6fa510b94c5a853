"""Kernels that read an image of other channels than they were made for; `InputChannels` has the rules in words."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_atlas.intake.inflation import same_names

How = Literal["repeat", "mean", "zero"]
Kernel = Float[Tensor, "outputs inputs *sides"]
"""Of a convolution in 3D, or in 2D."""


def kernel_for_channels(
    kernel: Kernel, channels: int, how: How
) -> tuple[Float[Tensor, "outputs channels *sides"], str]:
    """Return a kernel for so many input channels without names, and what was done in words."""
    theirs = kernel.shape[1]
    shares = channel_shares(theirs, channels, how, {})
    if how == "mean":
        words = f"sum divided by {channels}"
    elif how == "zero":
        words = "the further ones 0" if theirs < channels else "the others left out"
    else:
        copies = (shares > 0).sum(0).unique().tolist()
        words = f"repeated, and divided by {' or '.join(map(str, copies))}"
    return _mixed(kernel, shares), words


def kernel_by_name(
    kernel: Kernel, theirs: Sequence[str], ours: Sequence[str], how: How
) -> tuple[Float[Tensor, "outputs channels *sides"], str]:
    """Return a kernel for other input channels, of which some have the same name, and what was done in words.

    Args:
        kernel: Of the file.
        theirs: Names of the channels that it reads.
        ours: Names of those that it is to read.
        how: What becomes of the others.
    """
    others, free = [each for each in ours if each not in theirs], [each for each in theirs if each not in ours]
    told = [f"{', '.join(each for each in ours if each in theirs)} by name"]
    if others:
        givers = ", ".join(free or theirs)
        taken = {"repeat": f"repeats {givers}", "mean": f"the mean of {givers}", "zero": "0"}
        told.append(f"{', '.join(others)} {taken[how]}")
    if free and (how == "zero" or not others):
        told.append(f"{', '.join(free)} {'left out' if how == 'zero' else 'shared by all'}")
    shares = channel_shares(len(theirs), len(ours), how, same_names(theirs, ours))
    return _mixed(kernel, shares), "; ".join(told)


def channel_shares(theirs: int, ours: int, how: How, named: Mapping[int, int]) -> Float[Tensor, "ours theirs"]:
    """Return how much of each of the file's channels each of the network's takes.

    Args:
        theirs: Channels of the file.
        ours: Channels of the network.
        how: What becomes of channels without a name on both sides.
        named: Channel of the network -> the file's of the same name.
    """
    shares = torch.zeros(ours, theirs, dtype=torch.float64)
    for here, there in named.items():
        shares[here, there] = 1.0
    if how == "zero":
        return shares if named else shares.fill_diagonal_(1.0)
    others = [here for here in range(ours) if here not in named]
    free = [there for there in range(theirs) if there not in named.values()]
    givers = torch.tensor(free or range(theirs))
    if how == "repeat":
        shares[others, givers[torch.arange(len(others)) % len(givers)]] = 1.0
    elif others or free:
        shares[torch.tensor(others or range(ours))[:, None], givers] += 1 / len(givers)
    return shares / shares.sum(0)


def _mixed(kernel: Kernel, shares: Float[Tensor, "channels inputs"]) -> Float[Tensor, "outputs channels *sides"]:
    return torch.einsum("ci,oi...->oc...", shares.to(kernel), kernel)
