"""P3D and MP3D: residual networks whose kernels lie in the slices or across them, under the published names."""

from collections.abc import Sequence
from typing import Literal

from torch import nn
from torch.nn import functional as F

from lightning_atlas.networks.base import Coarse, Maps, Stage
from lightning_atlas.networks.conv_norm import Norm, make_norm
from lightning_atlas.networks.depth import PRESERVE, Conv3d, DepthAware, DepthPolicy, Step, check_strides
from lightning_atlas.types import Image

BLOCKS = {
    18: (2, 2, 2, 2),
    "18ba": (2, 2, 2, 2),
    "34ba": (3, 4, 6, 3),
    63: (3, 4, 6, 3),
    131: (3, 4, 23, 3),
    199: (3, 8, 36, 3),
}
"""How many blocks each of the four layers has; those of the networks with `ba` are no bottlenecks."""
ORDER = "ABC"
"""How a block joins its kernels, by its number in the whole network."""

Layer = tuple[nn.Module, nn.Module]


class P3D(DepthAware):
    """Residual network in which a kernel in the slices (3 x 3 x 1) and one across them (1 x 1 x 3) share the work.

    The two act one after the other (A), side by side (B), or both (C); blocks take turns in this by their number in the
    whole network. It is an encoder without a head, for `PooledEncoder` and detectors.

    | depth | parameters | features of the layers |
    |---|---|---|
    | 18ba, 34ba (no bottlenecks) | 15.3 M, 28.3 M | 64, 128, 256, 512 |
    | 18, 63, 131, 199 | 16.0 M, 27.3 M, 49.6 M, 68.0 M | 256, 512, 1024, 2048 |

    The defaults are MP3D. The P3D of the journal's detector has `pool_depth: 1` and pools its nine slices to 5, 3 and 1
    (`depth_policy: {pools: {1: halve, 2: halve, 3: merge}}`); the weights of one fit the other.

    Source: Qiu et al., "Learning Spatio-Temporal Representation with Pseudo-3D Residual Networks", 2017,
    https://arxiv.org/abs/1711.10305; Zhang et al., "Revisiting 3D Context Modeling with Supervised Pre-training for
    Universal Lesion Detection in CT Slices", 2020, https://arxiv.org/abs/2012.08770; names and order of the blocks as
    in https://github.com/urmagicsmine/MP3D.
    Differs: slices lie along k, so published kernels are transposed at intake. What takes the levels to one plane
    (`DepthCollapse`) belongs to the detector.

    Args:
        in_channels: Channels of the image.
        depth: Layers: 63, 131, 199, or 18; without bottlenecks `18ba` and `34ba`.
        norm: `group` with 32 groups, as published (fewer where a layer's channels do not divide by 32), or `batch`.
        strides: In the plane, of the first convolution, the pool behind it (1: there is no pool) and the four layers.
        depth_policy: What is strided, pooled and padded along k.
        pool_depth: Slices that the pool behind the first convolution looks at: 3 (MP3D) or 1 (P3D).
        features: Channels of the first layer's kernels, which each further layer doubles; as published, 64.

    Raises:
        ValueError: There are not six strides.
    """

    def __init__(
        self,
        in_channels: int = 1,
        depth: Literal[18, "18ba", "34ba", 63, 131, 199] = 63,
        norm: Norm = "group",
        strides: Sequence[int] = (2, 2, 1, 2, 2, 2),
        depth_policy: DepthPolicy = PRESERVE,
        pool_depth: Literal[1, 3] = 3,
        features: int = 64,
    ) -> None:
        super().__init__()
        check_strides(strides, "strides")
        self.depth, self.strides, self.pool_depth = depth, tuple(strides), pool_depth
        self.conv1_custom = Conv3d(in_channels, features, (7, 7, 1), padding=(3, 3, 0), bias=False)
        self.norm1 = make_norm(norm, features)
        self.maxpool = nn.MaxPool3d((3, 3, pool_depth), padding=(1, 1, pool_depth // 2))
        block = BasicBlock if depth in ("18ba", "34ba") else Bottleneck
        found, number = [features], 0
        for level, blocks in enumerate(BLOCKS[depth]):
            width, layer = features * 2**level, nn.Sequential()
            for place in range(blocks):
                inputs = found[-1] if place == 0 else width * block.expansion
                layer.append(block(inputs, width, ORDER[number % len(ORDER)], norm))
                number += 1
            self.add_module(f"layer{level + 1}", layer)
            found.append(width * block.expansion)
        self.level_features, self.coarse_features = tuple(found), found[-1]
        for each in self.modules():
            if isinstance(each, nn.Conv3d):
                nn.init.xavier_uniform_(each.weight)
        self.set_depth(depth_policy)

    def stages(self) -> list[Stage]:
        """Return the first convolution and the four layers."""
        parts = [("conv1_custom", "norm1"), *((f"layer{number}",) for number in range(1, 5))]
        return [Stage(f"encoder.{level}", "encoder", modules) for level, modules in enumerate(parts)]

    def conventions(self) -> dict[str, str]:
        """Return the number of layers, and the slices of the first pool."""
        return {"depth": str(self.depth), "pool_depth": str(self.pool_depth)}

    def resize(self, outputs: int) -> None:
        """Refuse: there is no head.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"P3D is an encoder and has no head for {outputs} outputs; set model.init_args.network to PooledEncoder "
            "(of whole images) or to a detector (boxes), with P3D as its network"
        )

    def set_strides(self, steps: Sequence[Step]) -> None:
        """Stride so along i, j, k at the six places."""
        self.conv1_custom.stride, self.maxpool.stride = steps[:2]
        for number, step in enumerate(steps[2:], 1):
            block = self.get_submodule(f"layer{number}.0")
            assert isinstance(block, BasicBlock | Bottleneck)
            block.set_stride(step)

    def reductions(self) -> list[Step]:
        """Return how many voxels of the image lie along i, j, k of one of each level; levels are pooled."""
        pools = self.depth_policy.pools
        return [
            (i, j, k * (2 if pools.get(level) == "halve" else 1))
            for level, (i, j, k) in enumerate(super().reductions())
        ]

    def level_depths(self, depth: int) -> list[int]:
        """Return how many slices each level has of an image of `depth` slices; levels are pooled.

        Raises:
            ValueError: The image has too few.
        """
        pools = self.depth_policy.pools
        left = {"halve": lambda k: -(-k // 2), "merge": lambda k: k - 2}
        found = enumerate(super().level_depths(depth))
        return [left[pools[level]](k) if level in pools else k for level, k in found]

    def levels(self, image: Image) -> list[Maps]:
        """Return the features of the first convolution and of the four layers, pooled as the policy says."""
        self.check_size(image)
        found = [F.relu(self.norm1(self.conv1_custom(image)), inplace=True)]
        features = self.maxpool(found[0]) if self.strides[1] > 1 else found[0]
        for number in range(1, 5):
            features = self.depth_policy.pooled(self.get_submodule(f"layer{number}")(features), number)
            found.append(features)
        return found

    def forward(self, image: Image) -> Coarse:
        """Return the features of the last layer."""
        return self.encoded(image)


class Block(nn.Module):
    """A residual block, whose stride can be changed.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        order: How the kernels are joined: A, B or C.
        norm: As in `P3D`.
    """

    expansion: int

    def __init__(self, inputs: int, outputs: int, order: str, norm: Norm) -> None:
        super().__init__()
        self.order, self.step = order, (1, 1, 1)
        self.downsample: nn.Sequential | None = None
        if inputs != outputs:
            self.downsample = nn.Sequential(Conv3d(inputs, outputs, 1, bias=False), make_norm(norm, outputs))

    def strided(self) -> list[Conv3d]:
        """Return the convolutions that stride, that of the shortcut among them."""
        found = [] if self.downsample is None else [self.downsample[0]]
        return [each for each in found if isinstance(each, Conv3d)]

    def set_stride(self, step: Step) -> None:
        """Stride so along i, j, k."""
        self.step = step
        for each in self.strided():
            each.stride = step

    def shortcut(self, features: Maps) -> Maps:
        """Return what is added to the block's own features."""
        if self.downsample is not None:
            return self.downsample(features)
        i, j, k = self.step
        return features[:, :, ::i, ::j, ::k]

    def layer(self, number: int) -> Layer:
        """Return a convolution and its norm."""
        return self.get_submodule(f"conv{number}"), self.get_submodule(f"norm_{number}")


class Bottleneck(Block):
    """Fewer channels, a kernel in and one across the slices, and four times as many channels.

    Args:
        inputs: Channels that come in.
        width: Channels of the two kernels.
        order: How the two kernels are joined: A, B or C.
        norm: As in `P3D`.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, order: str, norm: Norm) -> None:
        super().__init__(inputs, 4 * width, order, norm)
        self.conv1, self.norm_1 = Conv3d(inputs, width, 1, bias=False), make_norm(norm, width)
        self.conv2, self.norm_2 = _within(width, width), make_norm(norm, width)
        self.conv3, self.norm_3 = _across(width, width), make_norm(norm, width)
        self.conv4, self.norm_4 = Conv3d(width, 4 * width, 1, bias=False), make_norm(norm, 4 * width)

    def strided(self) -> list[Conv3d]:
        """Return the first convolution and that of the shortcut."""
        return [self.conv1, *super().strided()]

    def forward(self, features: Maps) -> Maps:
        """Return features on the grid that the stride leaves."""
        inner = joined(through(self.layer(1), features), self.layer(2), self.layer(3), self.order)
        return F.relu(self.norm_4(self.conv4(inner)) + self.shortcut(features), inplace=True)


class BasicBlock(Block):
    """A kernel in and one across the slices, twice.

    Args:
        inputs: Channels that come in.
        width: Channels that go out.
        order: How each two kernels are joined: A, B or C.
        norm: As in `P3D`.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, order: str, norm: Norm) -> None:
        super().__init__(inputs, width, order, norm)
        self.conv1, self.norm_1 = _within(inputs, width), make_norm(norm, width)
        self.conv2, self.norm_2 = _across(inputs if order == "B" else width, width), make_norm(norm, width)
        self.conv3, self.norm_3 = _within(width, width), make_norm(norm, width)
        self.conv4, self.norm_4 = _across(width, width), make_norm(norm, width)

    def strided(self) -> list[Conv3d]:
        """Return the first kernel, the second where it stands beside the first, and that of the shortcut."""
        return [self.conv1, *([self.conv2] if self.order == "B" else []), *super().strided()]

    def forward(self, features: Maps) -> Maps:
        """Return features on the grid that the stride leaves."""
        inner = joined(features, self.layer(1), self.layer(2), self.order)
        inner = joined(inner, self.layer(3), self.layer(4), self.order)
        return F.relu(inner + self.shortcut(features), inplace=True)


def joined(features: Maps, within: Layer, across: Layer, order: str) -> Maps:
    """Return what two layers make of features: one after the other (A), side by side (B), or both (C)."""
    seen = through(within, features)
    if order == "A":
        return through(across, seen)
    return seen + through(across, features if order == "B" else seen)


def through(layer: Layer, features: Maps) -> Maps:
    """Return what a convolution, its norm and a rectifier make of features."""
    convolution, norm = layer
    return F.relu(norm(convolution(features)), inplace=True)


def _within(inputs: int, outputs: int) -> Conv3d:
    return Conv3d(inputs, outputs, (3, 3, 1), padding=(1, 1, 0), bias=False)


def _across(inputs: int, outputs: int) -> Conv3d:
    return Conv3d(inputs, outputs, (1, 1, 3), padding=(0, 0, 1), bias=False)
