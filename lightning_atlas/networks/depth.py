"""What a residual network does along k, the axis of the slices: strides, pools, padding; none of them has weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from operator import mul
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from lightning_atlas.networks.base import Maps, Pyramid
from lightning_atlas.types import Image

Along = Literal["preserve", "stride"]
Pool = Literal["halve", "merge"]
Padding = Literal["zeros", "replicate"]
Step = tuple[int, int, int]

PLACES = ("first convolution", "first pool", "layer 1", "layer 2", "layer 3", "layer 4")
"""Where a residual network may stride."""
POOLED_LAYERS = (1, 2, 3)
"""Behind which a policy may pool; what lies behind the last layer is the head's business."""


@dataclass(frozen=True)
class DepthPolicy:
    """What a residual network does along k; no tensor depends on it, so that it may change after pre-training.

    Source: Zhang et al., "Advancing 3D Medical Image Analysis with Variable Dimension Transform based Supervised 3D
    Pre-training", 2022, https://arxiv.org/abs/2201.01426: pictures of three slices are seen with `preserve`, crops of
    scans with `stride`, nine slices of the detector with `preserve` and `pools: {1: halve, 2: halve, 3: merge}`.

    Args:
        strides: `preserve` keeps every slice, `stride` strides along k as in the plane; or six strides along k, of the
            first convolution, the pool behind it, and the four layers.
        pools: What is pooled along k behind layers 1 to 3, by the layer's number: `halve` keeps the maximum around
            every second slice, `merge` that of each three neighbours, so that two slices fewer are left.
        padding: What convolutions see beyond the first and last slice: `zeros`, or these slices again (`replicate`).

    Raises:
        ValueError: There are not six strides, a pool lies behind no layer from 1 to 3, or a word is none of these.
    """

    strides: Along | tuple[int, ...] = "preserve"
    pools: Mapping[int, Pool] = field(default_factory=dict)
    padding: Padding = "zeros"

    def __post_init__(self) -> None:
        if not isinstance(self.strides, str):
            check_strides(self.strides, "depth_policy.strides")
        elif self.strides not in get_args(Along):
            raise ValueError(
                f"depth_policy.strides is {' or '.join(get_args(Along))}, or six numbers; found {self.strides!r}"
            )
        if wrong := [layer for layer in self.pools if layer not in POOLED_LAYERS]:
            raise ValueError(
                f"depth_policy.pools names the layers behind which k is pooled, 1, 2 or 3; found {wrong[0]}; "
                "write pools: {1: halve, 2: halve, 3: merge}, for example"
            )
        if strange := [how for how in self.pools.values() if how not in get_args(Pool)]:
            raise ValueError(f"depth_policy.pools has {' or '.join(get_args(Pool))} for a layer; found {strange[0]!r}")
        if self.padding not in get_args(Padding):
            raise ValueError(f"depth_policy.padding is {' or '.join(get_args(Padding))}; found {self.padding!r}")

    def along(self, strides: Sequence[int]) -> tuple[int, ...]:
        """Return the strides along k of the six places.

        Args:
            strides: Those in the plane, of the same places.
        """
        if self.strides == "preserve":
            return (1,) * len(PLACES)
        return tuple(strides if self.strides == "stride" else self.strides)

    def depths(self, depth: int, strides: Sequence[int]) -> tuple[int, ...]:
        """Return how many slices are left behind the first convolution, its pool and each layer; below 1: too few.

        Args:
            depth: Slices of the image.
            strides: Those in the plane.
        """
        found = []
        for place, step in enumerate(self.along(strides)):
            how = self.pools.get(place - 2)  # a pool lies before the next layer
            depth = depth - 2 if how == "merge" else -(-depth // 2) if how == "halve" else depth
            depth = -(-depth // step)
            found.append(depth)
        return tuple(found)

    def check(self, depth: int, strides: Sequence[int], name: str) -> None:
        """Refuse an image of too few slices.

        Args:
            depth: Slices of the image.
            strides: Those in the plane.
            name: The network's, for the error.

        Raises:
            ValueError: A pool would have nothing to merge.
        """
        found = self.depths(depth, strides)
        if min(found) > 0:
            return
        place = next(place for place, left in zip(PLACES, found, strict=True) if left < 1)
        least = next(each for each in count(depth) if min(self.depths(each, strides)) > 0)
        raise ValueError(
            f"{name} has no slice left for {place} of an image of {depth} slices along k: pooled as pools says "
            f"({', '.join(f'{layer}: {how}' for layer, how in self.pools.items())}), it needs {least} or more; give it "
            "more slices, or set depth_policy.pools: {}"
        )

    def pooled(self, features: Maps, layer: int) -> Maps:
        """Pool along k what the next layer reads, if the policy says so.

        Args:
            features: As `layer` gave them.
            layer: Its number, from 1.
        """
        how = self.pools.get(layer)
        if how is None:
            return features
        stride, padding = (2, 1) if how == "halve" else (1, 0)
        return F.max_pool3d(features, (1, 1, 3), (1, 1, stride), (0, 0, padding))


PRESERVE = DepthPolicy()
"""As pictures of three slices are seen."""


class Conv3d(nn.Conv3d):
    """Convolution whose padding along k can be the first and last slice instead of zeros; it keeps the names.

    Taps that meet nothing but zeros, the outer ones of a tall kernel on few slices, are left out: nothing changes but
    the time. Nothing teaches them either: their gradient is exactly zero.
    """

    depth_padding: Padding = "zeros"

    def forward(self, input: Maps) -> Maps:
        """Return the convolved features."""
        i, j, along = (int(each) for each in self.padding)
        weight, slices = self.weight, input.shape[-1]
        if self.depth_padding == "replicate" and along:
            input, along = with_slices_repeated(input, along), 0
        elif (idle := along - slices + 1) > 0 and self.dilation[2] == 1:
            weight, along = weight[..., idle:-idle], along - idle
        return F.conv3d(input, weight, self.bias, self.stride, (i, j, along), self.dilation, self.groups)


def with_slices_repeated(features: Maps, count: int) -> Maps:
    """Return features with so many copies of their first slice before it, and of their last slice behind it."""
    # Not by F.pad: the gradient of its replicate mode is not deterministic on a GPU.
    first, last = (each.expand(*features.shape[:-1], count) for each in (features[..., :1], features[..., -1:]))
    return torch.cat([first, features, last], dim=-1)


class DepthAware(Pyramid):
    """An encoder of a first convolution and four layers, whose policy along k can be changed after it was built."""

    strides: tuple[int, ...]
    """In the plane, of the six places."""
    depth_policy: DepthPolicy

    def set_depth(self, policy: DepthPolicy) -> None:
        """Follow another policy along k from now on; no tensor is touched.

        Raises:
            ValueError: The policy strides in a pool that the network does not have.
        """
        if self.strides[1] == 1 and policy.along(self.strides)[1] > 1:
            raise ValueError(
                f"depth_policy.strides has {policy.along(self.strides)[1]} for {PLACES[1]}, and {type(self).__name__} "
                f"has no such pool, since its strides are {list(self.strides)}: write 1 there, or strides: "
                "[2, 2, 1, 2, 2, 2] as published"
            )
        self.depth_policy = policy
        for module in self.modules():
            if isinstance(module, Conv3d):
                module.depth_padding = policy.padding
        steps = [(each, each, along) for each, along in zip(self.strides, policy.along(self.strides), strict=True)]
        self.set_strides(steps)

    def set_strides(self, steps: Sequence[Step]) -> None:
        """Stride so along i, j, k at the six places."""
        raise NotImplementedError

    def reductions(self) -> list[Step]:
        """Return how many voxels of the image lie along i, j, k of one of each level."""
        plane, along = list(self.strides), list(self.depth_policy.along(self.strides))
        for layer, how in self.depth_policy.pools.items():
            along[2 + layer] *= 2 if how == "halve" else 1
        first, _, *layers = zip(*(accumulate(each, mul) for each in (plane, plane, along)), strict=True)
        return [first, *layers]

    def level_depths(self, depth: int) -> list[int]:
        """Return how many slices each level has of an image of `depth` slices.

        Raises:
            ValueError: The image has too few.
        """
        self.depth_policy.check(depth, self.strides, type(self).__name__)
        first, _, *layers = self.depth_policy.depths(depth, self.strides)
        return [first, *layers]

    def check_size(self, image: Image) -> None:
        """Refuse an image of which too few slices are left, or too little to take statistics of.

        Raises:
            ValueError: A pool of the policy has nothing to merge, or batch norm would learn from a single voxel.
        """
        last, (*plane, _) = self.level_depths(image.shape[-1])[-1], self.reductions()[-1]
        left = [-(-side // step) for side, step in zip(image.shape[2:], plane, strict=False)]
        if not self.training or len(image) > 1 or max(*left, last) > 1:
            return
        if any(isinstance(each, nn.BatchNorm3d) for each in self.modules()):
            raise ValueError(
                f"batch norm cannot learn from the single voxel that {type(self).__name__} leaves of one image of "
                f"{' x '.join(map(str, image.shape[2:]))} voxels: take larger patches, two images a batch, or norm: "
                "group"
            )


def set_depth(network: nn.Module, policy: DepthPolicy) -> None:
    """Give every depth-aware network that a network holds, or is, another policy along k; no tensor is touched.

    Raises:
        ValueError: There is none.
    """
    found = depth_aware(network)
    if not found:
        raise ValueError(
            f"{type(network).__name__} has no policy along k that could be set: it holds no R3D and no P3D; set "
            "model.init_args.network to one of them, or to a network that has one as its backbone"
        )
    for each in found:
        each.set_depth(policy)


def depth_aware(network: nn.Module) -> list[DepthAware]:
    """Return the networks with a policy along k that a network holds, or is."""
    return [each for each in network.modules() if isinstance(each, DepthAware)]


def check_strides(strides: Sequence[int], name: str) -> None:
    """Refuse what are not six strides.

    Args:
        strides: Of the first convolution, the pool behind it, and the four layers.
        name: The argument's, for the error.

    Raises:
        ValueError: There are not six, or one is below 1.
    """
    if len(strides) != len(PLACES) or min(strides) < 1:
        raise ValueError(
            f"{name} has six numbers from 1 up, of {', '.join(PLACES)}; found {list(strides)}; "
            "write [2, 2, 1, 2, 2, 2] as published"
        )
