"""From the features of a stack of slices to those of one plane: the slices along k become one."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Collapse = Literal["centre", "group", "mean", "full"]
Features = Float[Tensor, "batch channels i j k"]
Plane = Float[Tensor, "batch channels i j 1"]


class DepthCollapse(nn.Module):
    """Takes features of several slices to the features of one plane."""

    def forward(self, features: Features) -> Plane:
        """Return the features of the plane; k stays as an axis, of one."""
        raise NotImplementedError


class CentreSlice(DepthCollapse):
    """The slice in the middle; of an even number the one behind it, as published."""

    def forward(self, features: Features) -> Plane:
        """Return the slice in the middle."""
        middle = features.shape[-1] // 2
        return features[..., middle : middle + 1]


class DepthMean(DepthCollapse):
    """The mean of all slices."""

    def forward(self, features: Features) -> Plane:
        """Return the mean along k."""
        return features.mean(-1, keepdim=True)


class GroupTransform(DepthCollapse):
    """A weight for each slice of each channel: the group transform module of MP3D.

    It alone of MP3D depends on the number of slices. Weights of another number are taken by the adapter `DepthWeights`.

    Source: Zhang et al., "Revisiting 3D Context Modeling with Supervised Pre-training for Universal Lesion Detection in
    CT Slices", 2020, https://arxiv.org/abs/2012.08770; shape of the weights as in https://github.com/urmagicsmine/MP3D.
    Differs: it begins as the slice in the middle, so that features that were trained keep their sign; published is a
    random beginning.

    Args:
        channels: Of the features.
        depth: Slices.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.weight = nn.Parameter(torch.zeros(channels, depth, 1, 1))
        nn.init.ones_(self.weight[:, depth // 2])

    def forward(self, features: Features) -> Plane:
        """Return the weighted sum of the slices.

        Raises:
            ValueError: There is another number of slices than weights.
        """
        check_depth(features, self.depth, "DepthWeights")
        return torch.einsum("bcijk,ck->bcij", features, self.weight[:, :, 0, 0]).unsqueeze(-1)


class FullKernel(DepthCollapse):
    """A kernel over all slices that also mixes the channels.

    Source: as `GroupTransform`, where it is the costly alternative.

    Args:
        channels: Of the features.
        depth: Slices.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.weight = nn.Parameter(torch.empty(channels, channels, 1, 1, depth))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, features: Features) -> Plane:
        """Return what the kernel makes of the slices.

        Raises:
            ValueError: There is another number of slices than the kernel is deep.
        """
        check_depth(features, self.depth, "KernelSize")
        return nn.functional.conv3d(features, self.weight)


def depth_collapse(how: Collapse, channels: int, depth: int) -> DepthCollapse:
    """Return what takes the slices of one level to a plane.

    Args:
        how: The `centre` slice, a weight for each slice of each channel (`group`), their `mean`, or a `full` kernel.
        channels: Of the level.
        depth: Slices of the level.
    """
    if how == "group":
        return GroupTransform(channels, depth)
    if how == "full":
        return FullKernel(channels, depth)
    return {"centre": CentreSlice, "mean": DepthMean}[how]()


def check_depth(features: Features, depth: int, adapter: str) -> None:
    """Refuse another number of slices than was built for.

    Args:
        features: Of some slices.
        depth: What was built for.
        adapter: Takes weights of one number of slices for another.

    Raises:
        ValueError: There are more or fewer slices.
    """
    if features.shape[-1] != depth:
        raise ValueError(
            f"the collapse was built for levels of {depth} slices, and the features have {features.shape[-1]}: set the "
            f"network's slices to those of the patches and of the window; trained weights of another number are taken "
            f"by model.init_args.adapters: [{{class_path: {adapter}}}]"
        )
