"""Weights of 3D residual networks of other codes: they arrive whole, and compute what those codes compute."""

import copy
from dataclasses import replace

import pytest
import torch
from monai.networks.nets.resnet import ResNet
from torch import nn
from torch.nn import functional as F

from lightning_atlas.intake import InputChannels, SourceWeights, load_weights, zoo
from lightning_atlas.intake.loading import by_entry
from lightning_atlas.networks import P3D, R3D, PooledEncoder, ResUNet, SliceDetector
from lightning_atlas.networks.depth import DepthPolicy

FEATURES = 4
STRIDED = DepthPolicy("stride")


def spread(network):
    """Give every tensor numbers of its own, those of norms near 1."""
    torch.manual_seed(2)
    for name, each in network.state_dict().items():
        if each.is_floating_point():
            each.copy_(torch.rand_like(each) + 0.5 if each.ndim == 1 else torch.randn_like(each) * 0.2)
        if name.endswith("running_mean"):
            each.sub_(1.0)
    return network.eval()


def source(state, name):
    return by_entry(SourceWeights(dict(state), None, "some.pth", "0" * 64), zoo.find(name))


def narrow(name):
    entry = zoo.find(name)
    assert entry.network is not None
    spec = copy.deepcopy(entry.network)
    spec["init_args"]["features"] = FEATURES
    return replace(entry, network=spec).build().eval()


def seen(network, image, **more):
    """Return the last features of a network of ours for a video with its axes channel, time, row, column."""
    with torch.no_grad():
        return network(image.permute(0, 1, 4, 3, 2), **more).permute(0, 1, 4, 3, 2)


def alike(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().amax()))


class Video(nn.Module):
    """The layout of torchvision's R3D-18: convolution and norm of a block in one sequence, no pool."""

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Sequential(
                nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm3d(outputs), nn.ReLU()
            )
            self.conv2 = nn.Sequential(nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm3d(outputs))
            self.downsample = None
            if stride != 1:
                shortcut = nn.Conv3d(inputs, outputs, 1, stride, bias=False)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(outputs))

        def forward(self, x):
            return F.relu(self.conv2(self.conv1(x)) + (x if self.downsample is None else self.downsample(x)))

    def __init__(self):
        super().__init__()
        widths = [FEATURES * 2**level for level in range(4)]
        first = nn.Conv3d(3, FEATURES, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm3d(FEATURES), nn.ReLU())
        pairs = zip([FEATURES, *widths], widths, [1, 2, 2, 2], strict=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(Video.Block(before, width, stride), Video.Block(width, width, 1))
            for before, width, stride in pairs
        )
        self.fc = nn.Linear(widths[-1], 400)

    def forward(self, x):
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))


def test_kinetics_in_torchvisions_layout_computes_what_torchvisions_network_does():
    theirs, ours = spread(Video()), narrow("kinetics400_r3d18")
    report = load_weights(ours, source(theirs.state_dict(), "kinetics400_r3d18"), required_share=1.0)
    assert report.fresh == report.left_over == []
    assert sorted(report.skipped) == ["fc.bias", "fc.weight"]
    video = torch.rand(1, 3, 8, 24, 40)
    with torch.no_grad():
        alike(seen(ours, video), theirs(video))


def like_hara(depth=18, shortcut="B", channels=3, **more):
    """Build MONAI's port of Hara's network, which MedicalNet's is as well."""
    block, widths = ("basic" if depth < 50 else "bottleneck"), [FEATURES * 2**level for level in range(4)]
    blocks = {18: [2, 2, 2, 2], 50: [3, 4, 6, 3]}[depth]
    options = {"shortcut_type": shortcut, "bias_downsample": False, "n_input_channels": channels}
    return spread(ResNet(block, blocks, widths, conv1_t_size=7, num_classes=700, **options, **more))


def last(network, image):
    with torch.no_grad():
        x = network.maxpool(F.relu(network.bn1(network.conv1(image))))
        return network.layer4(network.layer3(network.layer2(network.layer1(x))))


def test_kinetics_in_haras_layout_computes_what_haras_network_does():
    theirs, ours = like_hara(conv1_t_stride=(1, 2, 2)), narrow("kinetics700_r3d18")
    report = load_weights(ours, source(theirs.state_dict(), "kinetics700_r3d18"), required_share=1.0)
    assert report.fresh == report.left_over == []
    video = torch.rand(1, 3, 16, 32, 48)
    alike(seen(ours, video), last(theirs, video))


def test_colours_are_added_up_where_an_image_has_one_channel():
    theirs = like_hara(conv1_t_stride=(1, 2, 2))
    ours = R3D(1, 18, depth_policy=DepthPolicy((1, 2, 1, 2, 2, 2)), features=FEATURES).eval()
    weights = source(theirs.state_dict(), "kinetics700_r3d18")
    load_weights(ours, weights, required_share=1.0, adapters=[InputChannels("mean")])
    grey = torch.rand(1, 1, 16, 32, 32)
    alike(seen(ours, grey), last(theirs, grey.expand(-1, 3, -1, -1, -1)))


@pytest.mark.parametrize(("depth", "shortcut"), [(18, "A"), pytest.param(50, "B", marks=pytest.mark.slow)])
def test_medicalnet_arrives_in_r3d_and_in_what_holds_one(depth, shortcut):
    theirs = like_hara(depth, shortcut, channels=1, conv1_t_stride=2, feed_forward=False)
    state = {f"module.{name}": each for name, each in theirs.state_dict().items()}
    weights = source(state, f"medicalnet_resnet{depth}")

    def built():
        return R3D(1, depth, shortcut=shortcut, depth_policy=STRIDED, features=FEATURES)

    encoder, pooled, decoder = built().eval(), PooledEncoder(built()).eval(), ResUNet(built()).eval()
    for network, fresh in ((encoder, False), (pooled, True), (decoder, True)):
        report = load_weights(network, weights, required_share=1.0)
        assert report.encoder_share == 1.0
        assert report.left_over == []
        assert bool(report.fresh) == fresh
    scan = torch.rand(1, 1, 32, 32, 48)
    expected = last(theirs, scan)
    for each in (encoder, pooled.backbone, decoder.backbone):
        alike(seen(each, scan), expected)


@pytest.fixture
def coco():
    """Return a file's content in the layout of the released detector: 16 bits, slices first, rows before columns."""
    network = spread(SliceDetector(P3D(depth=63, features=8), 80, slices=3, features=8))
    turns = {5: (0, 1, 4, 3, 2), 4: (0, 1, 3, 2), 2: (0, 1), 1: (0,)}
    turned = {name: each.permute(turns[each.ndim]) for name, each in network.state_dict().items()}
    return network, {name: each.half() for name, each in turned.items()}


def test_of_the_released_detector_all_but_the_classes_arrives_in_32_bits(coco):
    theirs, state = coco
    assert len({name.split(".")[0] for name in state}) == 4
    assert state["backbone.layer1.0.conv3.weight"].shape == (8, 8, 3, 1, 1)
    ours = SliceDetector(P3D(depth=63, features=8), 1, slices=9, collapse="group", features=8)
    report = load_weights(ours, source(state, "mp3d63_coco"), ("lesion",), required_share=1.0)
    classes = {f"bbox_head.{layer}.{each}" for layer in ("fc_cls", "fc_reg") for each in ("weight", "bias")}
    assert set(report.skipped) == classes
    assert report.fresh_names == classes | {f"collapse.{level}.weight" for level in range(4)}
    assert report.left_over == []
    for name, each in ours.state_dict().items():
        assert each.dtype == torch.float32
        if name not in report.fresh_names:
            torch.testing.assert_close(each, theirs.state_dict()[name].half().float(), rtol=0, atol=0)


def test_of_the_released_detector_the_encoder_alone_is_taken_by_what_holds_it(coco):
    _, state = coco
    weights = source(state, "mp3d63_coco")
    for network in (P3D(depth=63, features=8), PooledEncoder(P3D(depth=63, features=8), 2)):
        report = load_weights(network, weights, required_share=1.0)
        assert report.encoder_share == 1.0
        assert {each.name.split(".")[0] for each in report.left_over} == {"neck", "rpn_head", "bbox_head"}


def test_a_pool_of_another_depth_than_the_weights_had_is_told(coco):
    weights = source(coco[1], "mp3d63_coco")
    journal = DepthPolicy(pools={1: "halve", 2: "halve", 3: "merge"})
    network = P3D(depth=63, features=8, pool_depth=1, depth_policy=journal)
    report = load_weights(network, replace(weights, network=(weights.network or {})), required_share=1.0)
    assert any("pool_depth: 3, and the network has 1" in note for note in report.notes)


def test_a_network_with_a_depth_policy_is_built_from_what_json_has_of_it():
    policy = {"strides": "preserve", "pools": {"1": "halve", "3": "merge"}, "padding": "replicate"}
    arguments = {"depth": "18ba", "features": 8, "depth_policy": policy}
    network = zoo.build_network({"class_path": "lightning_atlas.networks.P3D", "init_args": arguments})
    assert isinstance(network, P3D)
    assert network.depth_policy == DepthPolicy(pools={1: "halve", 3: "merge"}, padding="replicate")
