"""A 2D Faster R-CNN under mmdetection's names in a `SliceDetector`, against the 2D one."""

import pytest
import torch
from flat_resnet import FlatResNet, as_volume, drawn_flat
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.intake.loading import load_weights
from lightning_atlas.intake.two_d import Inflation
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.networks import P3D, R3D, ACSResNet, Network, SliceDetector
from lightning_atlas.networks.detection.fpn import FeaturePyramid


def built(backbone: Network) -> SliceDetector:
    return SliceDetector(backbone, 2, 3, features=16).eval()


def flat_detector(network: SliceDetector, flat: FlatResNet) -> SourceWeights:
    """Return a file of the 2D ResNet with all that lies behind it in the network, drawn from a seed."""
    generator = torch.Generator().manual_seed(1)
    theirs = {f"backbone.{name}": each for name, each in flat.state_dict().items() if not name.startswith("fc.")}
    behind = {name: each for name, each in network.state_dict().items() if not name.startswith("backbone.")}
    theirs |= {name: torch.randn(each.shape, generator=generator) for name, each in behind.items()}
    return SourceWeights(theirs, None, "faster_rcnn.pth", "0" * 64)


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("backbone", "depth", "how"),
    [
        (lambda: R3D(features=8), 18, "centre"),
        (lambda: ACSResNet(features=8, kernels="slice"), 18, "slice"),
        (lambda: P3D(norm="batch", features=8), 50, "p3d"),
    ],
    ids=["R3D", "ACSResNet", "P3D"],
)
@torch.no_grad()
def test_pyramid_and_heads_answer_equal_slices_as_the_picture_was(backbone, depth, how):
    network, flat, grey = built(backbone()), drawn_flat(1, depth, caffe=True), torch.randn(1, 1, 64, 96)
    source = flat_detector(network, flat)
    report = load_weights(network, source, required_share=1.0, adapters=[Inflation(how)])
    turned = [each.name for each in report.reshaped if each.how.startswith("turned: ")]
    assert turned == [*(f"neck.fpn_convs.{each}.conv.weight" for each in range(4)), "rpn_head.rpn_conv.weight"]
    levels = network.backbone.levels(as_volume(grey, 3))
    found = network.neck(network.collapse([levels[each] for each in network.levels]))
    neck = FeaturePyramid([each.shape[1] for each in levels[1:]], 16, axes=2, further=1)
    neck.load_state_dict(below(source.tensors, "neck."))
    proposing = nn.Conv2d(16, 16, 3, padding=1)
    proposing.load_state_dict(below(source.tensors, "rpn_head.rpn_conv."))
    for ours, theirs in zip(found, neck(flat.levels(grey.expand(-1, 3, -1, -1))[1:]), strict=True):
        pairs = [(ours, theirs), (network.rpn_head.rpn_conv(ours), proposing(theirs))]
        assert all((a.transpose(2, 3) - b).abs().max() < 1e-5 * b.abs().max() for a, b in pairs)
    regions, layers = torch.randn(3, 16, 7, 7), below(source.tensors, "bbox_head.")
    hidden = regions.flatten(1)
    for number in range(2):
        weight, bias = (layers[f"shared_fcs.{number}.{each}"] for each in ("weight", "bias"))
        hidden = F.relu(F.linear(hidden, weight, bias))
    logits, _ = network.bbox_head(regions.transpose(2, 3))
    torch.testing.assert_close(logits, F.linear(hidden, layers["fc_cls.weight"], layers["fc_cls.bias"]))


def test_flat_kernels_in_three_planes_stay_while_those_of_2d_layers_turn():
    network = built(ACSResNet(in_channels=3, features=8))
    source = flat_detector(network, drawn_flat(1))
    load_weights(network, source, required_share=1.0, adapters=[Inflation()])
    for name, turned in {"backbone.layer1.0.conv1.weight": False, "neck.fpn_convs.0.conv.weight": True}.items():
        theirs = source.tensors[name]
        assert torch.equal(network.get_parameter(name), theirs.transpose(2, 3) if turned else theirs)


@pytest.mark.parametrize(
    ("backbone", "how"),
    [
        (lambda: R3D(features=8), "centre"),
        (lambda: ACSResNet(features=8), "centre"),
        (lambda: P3D(depth="18ba", norm="batch", features=8), "p3d"),
    ],
    ids=["R3D", "ACSResNet", "P3D"],
)
def test_what_was_inflated_before_is_taken_as_it_is(backbone, how):
    first, second = built(backbone()), built(backbone())
    tensors = {f"network.{name}": each for name, each in first.state_dict().items()}
    load_weights(second, SourceWeights(tensors, None, "own.ckpt", "0" * 64), adapters=[Inflation(how)])
    assert all(torch.equal(each, first.state_dict()[name]) for name, each in second.state_dict().items())
