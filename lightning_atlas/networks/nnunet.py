"""nnU-Net v2's U-Nets, plain and with a residual encoder, under nnU-Net's own state-dict keys."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_atlas.networks.base import Coarse, Encoding, Stage
from lightning_atlas.networks.supervised import DeeplySupervised
from lightning_atlas.types import Image, Logits

Size = int | Sequence[int]
"""Voxels along i, j, k, or one number for the three."""
Sides = tuple[int, int, int]
Features = Float[Tensor, "batch features i j k"]
Level = Float[Tensor, "batch level_features level_i level_j level_k"]
Outputs = list[Float[Tensor, "batch outputs ..."]]
Norm = Literal["instance", "batch"]
Activation = Literal["leaky_relu", "relu"]

NORMS = {"instance": nn.InstanceNorm3d, "batch": nn.BatchNorm3d}
ACTIVATIONS = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU}


class NnUNet(DeeplySupervised, Encoding):
    """The U-Nets that nnU-Net v2 plans: plain, or with a residual encoder (ResEnc M, L, XL); same keys, same results.

    Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
    2021, https://doi.org/10.1038/s41592-020-01008-z; Isensee et al., "nnU-Net Revisited", 2024,
    https://arxiv.org/abs/2404.09556; keys as in the package dynamic_network_architectures 0.4.4.
    Differs: axes are i, j, k, so nnU-Net's sizes are reversed and its kernels transposed (`read_results` does both);
    without deep supervision the outputs of coarser levels are not there, while nnU-Net keeps them unused.

    Args:
        in_channels: Channels of the image.
        out_channels: Outputs, background included; a run sets them from its classes.
        features: Channels of each stage of the encoder, from the full resolution down.
        kernel_sizes: Of each stage: one number, or three along i, j, k.
        strides: Of each stage: by how much it reduces the grid; the first is 1.
        depths: Convolutions (with `residual`, in the encoder: residual blocks of two) of each stage of the encoder,
            then of the decoder from the coarsest up: one stage fewer. ResEnc M, L, XL have 1, 3, 4, 6, 6, 6, then 1s.
        residual: The encoder is residual.
        norm: Instance norm, or batch norm as nnU-Net's `nnUNetTrainerBN` has it.
        activation: After each norm.
        deep_supervision: In training, return a list of outputs of every level, the finest first.

    Raises:
        ValueError: The lists do not describe the same number of stages.
    """

    def __init__(  # noqa: PLR0913 - as nnU-Net's plans have them
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        features: Sequence[int] = (32, 64, 128, 256, 320, 320),
        kernel_sizes: Sequence[Size] = (3, 3, 3, 3, 3, 3),
        strides: Sequence[Size] = (1, 2, 2, 2, 2, 2),
        depths: Sequence[int] = (2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2),
        residual: bool = False,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        _check_stages(features, kernel_sizes, strides, depths)
        kernels = [_sides(each) for each in kernel_sizes]
        steps = [_sides(each) for each in strides]
        levels = len(features)
        make = _ConvolutionFactory(norm, activation)
        self.encoder = Encoder(make, in_channels, features, kernels, steps, depths[:levels], residual)
        self.decoder = Decoder(make, self.encoder, features, kernels, steps, depths[levels:])
        self.decoder.add_outputs(features, out_channels, deep_supervision)
        self.deep_supervision = deep_supervision
        self.size_multiple = _multiple(steps)
        self.coarse_features = features[-1]
        self.apply(_initialise)

    def stages(self) -> list[Stage]:
        """Return a stage per level of the encoder and of the decoder, then the head: the outputs of all levels."""
        deeper = [(f"encoder.stages.{level}",) for level in range(1, len(self.encoder.stages))]
        stem = ["encoder.stem"] if isinstance(self.encoder.stem, Convolutions) else []
        down = [(*stem, "encoder.stages.0"), *deeper]
        up = [(f"decoder.transpconvs.{each}", f"decoder.stages.{each}") for each in range(len(self.decoder.stages))]
        outputs = tuple(f"decoder.seg_layers.{name}" for name in self.decoder.seg_layers)
        encoder = [Stage(f"encoder.{level}", "encoder", modules) for level, modules in enumerate(down)]
        decoder = [Stage(f"decoder.{level}", "decoder", modules) for level, modules in enumerate(up)]
        return [*encoder, *decoder, Stage("head", "head", outputs)]

    def coarser_outputs(self) -> list[str]:
        """Return the layers that give the outputs of coarser levels."""
        return [f"decoder.seg_layers.{name}" for name in list(self.decoder.seg_layers)[:-1]]

    def encoded(self, image: Image) -> Coarse:
        """Return the features of the deepest stage."""
        self.check_size(image)
        return self.encoder(image)[-1]

    def forward(self, image: Image) -> Logits | Outputs:
        """Return logits on the grid of the image; in training with deep supervision a list, the finest first."""
        self.check_size(image)
        outputs = self.decoder(self.encoder(image))
        return outputs if self.training and self.deep_supervision else outputs[0]


class ConvNormActivation(nn.Module):
    """A convolution, a norm and perhaps an activation; each tensor has two names, as in nnU-Net.

    Args:
        inputs: Channels.
        outputs: Channels.
        kernel: Odd sides.
        stride: By how much the grid is reduced.
        norm: What follows.
        activation: What follows that.
        bias: The convolution has one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sides,
        stride: Sides,
        norm: Norm,
        activation: Activation | None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        i, j, k = ((side - 1) // 2 for side in kernel)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding=(i, j, k), bias=bias)
        self.norm = NORMS[norm](outputs, eps=1e-5, affine=True)
        layers: list[nn.Module] = [self.conv, self.norm]
        if activation is not None:
            self.nonlin = ACTIVATIONS[activation](inplace=True)
            layers.append(self.nonlin)
        self.all_modules = nn.Sequential(*layers)

    def forward(self, features: Features) -> Level:
        """Return features on the reduced grid."""
        return self.all_modules(features)


class _ConvolutionFactory:
    """Makes the convolutions of one network: they share norm and activation."""

    def __init__(self, norm: Norm, activation: Activation) -> None:
        self.norm: Norm = norm
        self.activation: Activation = activation

    def one(self, inputs: int, outputs: int, kernel: Sides, stride: Sides = (1, 1, 1)) -> ConvNormActivation:
        return ConvNormActivation(inputs, outputs, kernel, stride, self.norm, self.activation)

    def linear(self, inputs: int, outputs: int, kernel: Sides, bias: bool = True) -> ConvNormActivation:
        return ConvNormActivation(inputs, outputs, kernel, (1, 1, 1), self.norm, None, bias)


class Convolutions(nn.Module):
    """Some convolutions in a row, the first of which may reduce the grid."""

    def __init__(
        self, make: _ConvolutionFactory, inputs: int, outputs: int, kernel: Sides, stride: Sides, depth: int
    ) -> None:
        super().__init__()
        first = make.one(inputs, outputs, kernel, stride)
        self.convs = nn.Sequential(first, *(make.one(outputs, outputs, kernel) for _ in range(depth - 1)))

    def forward(self, features: Features) -> Level:
        """Return features on the reduced grid."""
        return self.convs(features)


class ResidualBlock(nn.Module):
    """Two convolutions and a way around them, which averages where the grid is reduced (ResNet-D, He et al. 2019)."""

    def __init__(self, make: _ConvolutionFactory, inputs: int, outputs: int, kernel: Sides, stride: Sides) -> None:
        super().__init__()
        self.conv1 = make.one(inputs, outputs, kernel, stride)
        self.conv2 = make.linear(outputs, outputs, kernel)
        self.nonlin2 = ACTIVATIONS[make.activation](inplace=True)
        self.skip = nn.Sequential()
        if math.prod(stride) > 1:
            self.skip.append(nn.AvgPool3d(stride, stride))
        if inputs != outputs:
            self.skip.append(make.linear(inputs, outputs, (1, 1, 1), bias=False))

    def forward(self, features: Features) -> Level:
        """Return features on the reduced grid."""
        return self.nonlin2(self.conv2(self.conv1(features)) + self.skip(features))


class ResidualBlocks(nn.Module):
    """Some residual blocks in a row, the first of which may reduce the grid."""

    def __init__(
        self, make: _ConvolutionFactory, inputs: int, outputs: int, kernel: Sides, stride: Sides, depth: int
    ) -> None:
        super().__init__()
        first = ResidualBlock(make, inputs, outputs, kernel, stride)
        others = (ResidualBlock(make, outputs, outputs, kernel, (1, 1, 1)) for _ in range(depth - 1))
        self.blocks = nn.Sequential(first, *others)

    def forward(self, features: Features) -> Level:
        """Return features on the reduced grid."""
        return self.blocks(features)


class Encoder(nn.Module):
    """Stages of convolutions, or a stem and stages of residual blocks; returns the features of each, finest first."""

    def __init__(
        self,
        make: _ConvolutionFactory,
        inputs: int,
        features: Sequence[int],
        kernels: Sequence[Sides],
        strides: Sequence[Sides],
        depths: Sequence[int],
        residual: bool,
    ) -> None:
        super().__init__()
        self.stem = Convolutions(make, inputs, features[0], kernels[0], (1, 1, 1), 1) if residual else nn.Identity()
        first = features[0] if residual else inputs
        stages = zip([first, *features[:-1]], features, kernels, strides, depths, strict=True)
        self.stages = nn.Sequential(
            *(ResidualBlocks(make, *each) if residual else nn.Sequential(Convolutions(make, *each)) for each in stages)
        )

    def forward(self, image: Image) -> list[Tensor]:
        """Return the features of each stage."""
        found = [self.stem(image)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found[1:]


class Decoder(nn.Module):
    """Transposed convolutions up, joined with what the encoder had there; the encoder is held too, as in nnU-Net."""

    def __init__(
        self,
        make: _ConvolutionFactory,
        encoder: nn.Module,
        features: Sequence[int],
        kernels: Sequence[Sides],
        strides: Sequence[Sides],
        depths: Sequence[int],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages, self.transpconvs, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        for level, depth in zip(reversed(range(len(depths))), depths, strict=True):
            here, below, stride = features[level], features[level + 1], strides[level + 1]
            self.stages.append(Convolutions(make, 2 * here, here, kernels[level], (1, 1, 1), depth))
            self.transpconvs.append(nn.ConvTranspose3d(below, here, stride, stride))

    def add_outputs(self, features: Sequence[int], outputs: int, all_levels: bool) -> None:
        """Give the finest level, or every level, a layer of logits; the names count from the coarsest level."""
        names = range(len(self.stages)) if all_levels else [len(self.stages) - 1]
        for name in names:
            self.seg_layers[str(name)] = nn.Conv3d(features[-2 - name], outputs, kernel_size=1)

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        """Return the logits of each level that has such a layer, the finest first."""
        found = [skips[-1]]
        for up, stage, skip in zip(self.transpconvs, self.stages, reversed(skips[:-1]), strict=True):
            found.append(stage(torch.cat([up(found[-1]), skip], dim=1)))
        return [layer(found[1 + int(level)]) for level, layer in self.seg_layers.items()][::-1]


def _check_stages(
    features: Sequence[int], kernel_sizes: Sequence[Size], strides: Sequence[Size], depths: Sequence[int]
) -> None:
    levels = len(features)
    counts = {"kernel_sizes": len(kernel_sizes), "strides": len(strides), "depths": len(depths)}
    expected = {"kernel_sizes": levels, "strides": levels, "depths": 2 * levels - 1}
    if levels < 2 or counts != expected:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        wanted = ", ".join(f"{name} {count}" for name, count in expected.items())
        raise ValueError(
            f"NnUNet has {levels} features, so {levels} stages, and at least 2 are needed; found {found}; expected "
            f"{wanted} (the encoder's stages, then one fewer of the decoder)"
        )


def _sides(size: Size) -> Sides:
    i, j, k = (size,) * 3 if isinstance(size, int) else size
    return i, j, k


def _multiple(strides: Sequence[Sides]) -> int | Sides:
    i, j, k = (math.prod(along) for along in zip(*strides, strict=True))
    return i if i == j == k else (i, j, k)


def _initialise(module: nn.Module) -> None:
    """He et al. 2015 for the slope of nnU-Net's rectifier; residual blocks begin as the way around them."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock):
        nn.init.zeros_(module.conv2.norm.weight)
