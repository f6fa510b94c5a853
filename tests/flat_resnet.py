"""A 2D ResNet in plain torch, under torchvision's names: what is inflated, and what 3D features are compared with."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class FlatBlock(nn.Module):
    """Two kernels, or three as a bottleneck; the stride is on the kernel of 3 x 3, or on the first one as in Caffe."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, caffe: bool) -> None:
        super().__init__()
        widths = [inputs, width, width, 4 * width] if bottleneck else [inputs, width, width]
        sides, strided = ((1, 3, 1), 0 if caffe else 1) if bottleneck else ((3, 3), 0)
        for number, (before, after) in enumerate(pairwise(widths)):
            step = stride if number == strided else 1
            layer = nn.Conv2d(before, after, sides[number], step, sides[number] // 2, bias=False)
            self.add_module(f"conv{number + 1}", layer)
            self.add_module(f"bn{number + 1}", nn.BatchNorm2d(after))
        self.sides, self.downsample = sides, None
        if stride != 1 or inputs != widths[-1]:
            layer = nn.Conv2d(inputs, widths[-1], 1, stride, bias=False)
            self.downsample = nn.Sequential(layer, nn.BatchNorm2d(widths[-1]))

    def forward(self, picture: Tensor) -> Tensor:
        found = picture
        for number in range(1, len(self.sides) + 1):
            found = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(found))
            found = found if number == len(self.sides) else F.relu(found)
        return F.relu(found + (picture if self.downsample is None else self.downsample(picture)))


class FlatResNet(nn.Module):
    def __init__(self, depth: int = 18, features: int = 8, classes: int = 5, caffe: bool = False) -> None:
        super().__init__()
        bottleneck = depth >= 50
        self.conv1 = nn.Conv2d(3, features, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        inputs = features
        for level, count in enumerate(BLOCKS[depth]):
            width = features * 2**level
            outputs = width * (4 if bottleneck else 1)
            steps = [1 if level == 0 else 2, *[1] * (count - 1)]
            layers = [
                FlatBlock(inputs if n == 0 else outputs, width, s, bottleneck, caffe) for n, s in enumerate(steps)
            ]
            self.add_module(f"layer{level + 1}", nn.Sequential(*layers))
            inputs = outputs
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, classes)

    def levels(self, picture: Tensor) -> list[Tensor]:
        found = [self.relu(self.bn1(self.conv1(picture)))]
        features = self.maxpool(found[0])
        for level in range(1, 5):
            features = self.get_submodule(f"layer{level}")(features)
            found.append(features)
        return found

    def forward(self, picture: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.levels(picture)[-1]), 1))


def drawn_flat(seed: int, depth: int = 18, features: int = 8, caffe: bool = False) -> FlatResNet:
    """Build a 2D ResNet in evaluation whose numbers, those of the norms included, are drawn from a seed of its own."""
    generator = torch.Generator().manual_seed(seed)
    network = FlatResNet(depth, features, caffe=caffe).eval()
    for name, each in network.state_dict().items():
        if each.ndim > 1:
            each.copy_(torch.randn(each.shape, generator=generator) * (2.0 / each[0].numel()) ** 0.5)
        elif each.is_floating_point():
            low = -0.3 if name.endswith(("bias", "mean")) else 0.7
            each.copy_(torch.rand(each.shape, generator=generator) * 0.6 + low)
        else:
            each.fill_(seed + 7)
    return network


def as_volume(picture: Tensor, slices: int) -> Tensor:
    """Return pictures (batch, channels, rows j, columns i) as volumes of equal slices (batch, channels, i, j, k)."""
    return picture.transpose(2, 3).unsqueeze(-1).expand(-1, -1, -1, -1, slices).contiguous()
