"""The residual network with full 3D kernels that pictures of three slices pre-train."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn
from torch.nn import functional as F

from lightning_atlas.networks.base import Maps, Stage
from lightning_atlas.networks.conv_norm import ConvNorm, Norm, add_norm, make_norm, norm_name, norm_of
from lightning_atlas.networks.depth import PRESERVE, Conv3d, DepthAware, DepthPolicy, Step, check_strides
from lightning_atlas.types import Image

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""How many blocks each of the four layers has; from 50 on they are bottlenecks."""

Shortcut = Literal["A", "B"]


class R3D(DepthAware):
    """Residual network with full 3D kernels: an encoder without a head, for `PooledEncoder`, `ResUNet` and detectors.

    Source: Zhang et al., "Advancing 3D Medical Image Analysis with Variable Dimension Transform based Supervised 3D
    Pre-training", 2022, https://arxiv.org/abs/2201.01426; He et al., "Deep Residual Learning for Image Recognition",
    2015, https://arxiv.org/abs/1512.03385. Tensors have torchvision's names, and `gn1` for `bn1` with group norm.
    Differs: shortcuts without parameters carry gradients, and fit any number of channels.

    Args:
        in_channels: Channels of the image.
        depth: Layers: 18, 34, or with bottlenecks 50, 101, 152.
        norm: `batch`, or `group` with 32 groups (fewer where a layer's channels do not divide by 32).
        shortcut: Where a block changes the channels: `B`, a convolution, or `A`, zeros for the channels that it lacks.
        strides: In the plane, of the first convolution, the pool behind it (1: there is no pool) and the four layers.
        depth_policy: What is strided, pooled and padded along k.
        stem: Size along i, j, k of the first kernel, or `deep`: three kernels of 3 x 3 x 3.
        features: Channels of the first layer, which each further one doubles; as published, 64.

    Raises:
        ValueError: There are not six strides, or a side of the first kernel is even.
    """

    def __init__(
        self,
        in_channels: int = 1,
        depth: Literal[18, 34, 50, 101, 152] = 18,
        norm: Norm = "batch",
        shortcut: Shortcut = "B",
        strides: Sequence[int] = (2, 2, 1, 2, 2, 2),
        depth_policy: DepthPolicy = PRESERVE,
        stem: tuple[int, int, int] | Literal["deep"] = (7, 7, 7),
        features: int = 64,
    ) -> None:
        super().__init__()
        check_strides(strides, "strides")
        self.depth, self.strides = depth, tuple(strides)
        self.norm: Norm = norm
        self.deep = stem == "deep"
        if stem == "deep":
            widths = (in_channels, features // 2, features // 2, features)
            self.stem = nn.Sequential(*(ConvNorm(before, after, 3, norm) for before, after in pairwise(widths)))
        elif any(side % 2 == 0 for side in stem):
            raise ValueError(f"the sides of stem are odd, so that it has a middle; found {list(stem)}; write [7, 7, 7]")
        else:
            i, j, k = stem
            self.conv1 = Conv3d(in_channels, features, stem, padding=(i // 2, j // 2, k // 2), bias=False)
            add_norm(self, norm, features, "1")
        self.maxpool = nn.MaxPool3d(3, padding=1)
        kernels = (3, 3) if depth < 50 else (1, 3, 1)
        inner = [features * 2**level for level in range(4)]
        self.level_features = (features, *(width * (1 if depth < 50 else 4) for width in inner))
        self.coarse_features = self.level_features[-1]
        layers = zip(pairwise(self.level_features), inner, BLOCKS[depth], strict=True)
        for number, ((before, after), width, blocks) in enumerate(layers, 1):
            widths = [width] * (len(kernels) - 1) + [after]
            inputs = [before] + [after] * (blocks - 1)
            made = (Block([each, *widths], kernels, norm, shortcut) for each in inputs)
            self.add_module(f"layer{number}", nn.Sequential(*made))
        self.set_depth(depth_policy)

    def stages(self) -> list[Stage]:
        """Return the first convolution and the four layers."""
        first = ("stem",) if self.deep else ("conv1", norm_name(self.norm, "1"))
        parts = [first, *((f"layer{number}",) for number in range(1, 5))]
        return [Stage(f"encoder.{level}", "encoder", modules) for level, modules in enumerate(parts)]

    def conventions(self) -> dict[str, str]:
        """Return the number of layers: the blocks of a deeper network would nearly fill a shallower one."""
        return {"depth": str(self.depth)}

    def resize(self, outputs: int) -> None:
        """Refuse: there is no head.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"R3D is an encoder and has no head for {outputs} outputs; set model.init_args.network to PooledEncoder "
            "(whole images), ResUNet (each voxel) or RetinaDetector (boxes), and give that one R3D"
        )

    def set_strides(self, steps: Sequence[Step]) -> None:
        """Stride so along i, j, k at the first convolution, its pool and the first block of each layer."""
        first, self.maxpool.stride, *layers = steps
        convolution = self.get_submodule("stem.0.conv" if self.deep else "conv1")
        assert isinstance(convolution, Conv3d)
        convolution.stride = first
        for layer, step in zip(self.layers(), layers, strict=True):
            block = layer[0]
            assert isinstance(block, Block)
            block.set_stride(step)

    def layers(self) -> list[nn.Sequential]:
        """Return the four layers."""
        found = (self.get_submodule(f"layer{number}") for number in range(1, 5))
        return [layer for layer in found if isinstance(layer, nn.Sequential)]

    def opened(self, image: Image) -> Maps:
        """Return the features of the first convolution."""
        if self.deep:
            return self.stem(image)
        return F.relu(norm_of(self, self.norm, "1")(self.conv1(image)), inplace=True)

    def levels(self, image: Image) -> list[Maps]:
        """Return the features of the first convolution and of the four layers, each before what is pooled behind it."""
        self.check_size(image)
        found = [self.opened(image)]
        features = self.maxpool(found[0]) if self.strides[1] > 1 else found[0]
        for number, layer in enumerate(self.layers(), 1):
            found.append(layer(features))
            features = self.depth_policy.pooled(found[-1], number)
        return found

    def forward(self, image: Image) -> Maps:
        """Return the features of the last layer."""
        return self.encoded(image)


class Block(nn.Module):
    """A residual block, whose stride can be changed; its last norm starts at zero, and the block as its shortcut.

    Args:
        widths: Channels of the features, then of each convolution's result.
        kernels: Side of each convolution's kernel; the first of side 3 strides.
        norm: As in `R3D`.
        shortcut: As in `R3D`.
    """

    def __init__(self, widths: Sequence[int], kernels: Sequence[int], norm: Norm, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm: Norm = norm
        self.numbers = range(1, len(kernels) + 1)
        for number, kernel, (before, after) in zip(self.numbers, kernels, pairwise(widths), strict=True):
            convolution = Conv3d(before, after, kernel, padding=kernel // 2, bias=False)
            self.add_module(f"conv{number}", convolution)
            add_norm(self, norm, after, str(number))
        nn.init.zeros_(norm_of(self, norm, str(len(kernels))).weight)
        self.strided = f"conv{kernels.index(3) + 1}"
        self.missing = widths[-1] - widths[0]
        self.downsample: nn.Sequential | None = None
        if self.missing and shortcut == "B":
            self.downsample = nn.Sequential(Conv3d(widths[0], widths[-1], 1, bias=False), make_norm(norm, widths[-1]))
        self.set_stride((1, 1, 1))

    def set_stride(self, step: Step) -> None:
        """Stride so along i, j, k."""
        self.step = step
        shortcut = [] if self.downsample is None else [self.downsample[0]]
        for convolution in (self.get_submodule(self.strided), *shortcut):
            assert isinstance(convolution, Conv3d)
            convolution.stride = step

    def shortcut(self, features: Maps) -> Maps:
        """Return what the block adds to."""
        if self.downsample is not None:
            return self.downsample(features)
        i, j, k = self.step
        picked = features[..., ::i, ::j, ::k]
        return F.pad(picked, (0, 0) * 3 + (0, self.missing)) if self.missing else picked

    def forward(self, features: Maps) -> Maps:
        """Return the features of the block."""
        found = features
        for number in self.numbers:
            found = norm_of(self, self.norm, str(number))(self.get_submodule(f"conv{number}")(found))
            if number < self.numbers[-1]:
                found = F.relu(found, inplace=True)
        return F.relu(found + self.shortcut(features), inplace=True)
