"""The stages of every network are in the order of the forward path, as hooks and the graph of autograd see it."""

from functools import cache

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.unet import UNet as MonaiUNet
from torch import Tensor, nn

from lightning_atlas import networks
from lightning_atlas.networks import (
    P3D,
    R3D,
    ACSResNet,
    DoDNet,
    GenesisUNet,
    LidcFCN,
    MedNeXt,
    Network,
    NnUNet,
    PooledEncoder,
    ResNetUNet,
    ResUNet,
    RetinaDetector,
    SegResNet,
    SliceDetector,
    STUNet,
    SwinUNETR,
    UNet,
    UniMiSS,
    UniversalNetwork,
    ValidUNet,
    as_network,
)
from lightning_atlas.networks.base import stage_parameters

SHORT, TALL = (32, 16, 16), (64, 32, 32)


def dynunet() -> Network:
    sizes = [2, 2, 2]
    network = DynUNet(3, 1, 2, [3, 3, 3, 3], [1, *sizes], sizes, filters=[4, 6, 8, 10], norm_name="batch")
    encoder = ["input_block", "downsamples.0", "downsamples.1", "bottleneck"]
    return as_network(network, encoder, ["upsamples.0", "upsamples.1", "upsamples.2"], ["output_block"], 8)


def monai_unet() -> Network:
    # Each level holds the one below: registration order is input, below, output.
    network = MonaiUNet(3, 1, 2, (4, 6, 8), (2, 2), norm="batch")
    down = ["model.0", "model.1.submodule.0", "model.1.submodule.1"]
    return as_network(network, down, ["model.1.submodule.2"], ["model.2"], 4)


def nnunet(residual: bool = False, supervised: bool = False) -> NnUNet:
    sizes = (4, 6, 8, 8), (3,) * 4, (1, 2, 2, 2), (1, 1, 1, 2, 1, 1, 1)
    return NnUNet(1, 2, *sizes, residual=residual, deep_supervision=supervised)


def mednext(supervised: bool) -> MedNeXt:
    return MedNeXt(1, 2, 4, depths=(1,) * 9, deep_supervision=supervised)


def stu_net(supervised: bool) -> STUNet:
    return STUNet(1, 2, (4, 6, 8, 10), (1, 2, 1, 1), (1, 2, 2, 2), deep_supervision=supervised)


def universal(backbone: networks.Backbone) -> UniversalNetwork:
    return UniversalNetwork(backbone, 3, text_features=6, condition_features=4)


BUILT = {
    "UNet": (lambda: UNet(features=(4, 6, 8, 10)), SHORT),
    "SegResNet": (lambda: SegResNet(init_filters=8, blocks_down=(1, 1, 1, 2)), SHORT),
    "SwinUNETR": (lambda: SwinUNETR(feature_size=12), TALL),
    "SwinUNETR, version 2": (lambda: SwinUNETR(feature_size=12, use_v2=True), TALL),
    "GenesisUNet": (lambda: GenesisUNet(init_filters=4), SHORT),
    "NnUNet": (lambda: nnunet(), SHORT),
    "NnUNet, supervised": (lambda: nnunet(supervised=True), SHORT),
    "NnUNet, residual": (lambda: nnunet(residual=True), SHORT),
    "STUNet": (lambda: stu_net(False), SHORT),
    "STUNet, supervised": (lambda: stu_net(True), SHORT),
    "MedNeXt": (lambda: mednext(False), TALL),
    "MedNeXt, supervised": (lambda: mednext(True), TALL),
    "R3D": (lambda: R3D(features=4), SHORT),
    "R3D, bottlenecks and deep stem": (lambda: R3D(depth=50, features=4, stem="deep", norm="group"), SHORT),
    "ACSResNet": (lambda: ACSResNet(features=6, kernels="soft"), SHORT),
    "ResUNet": (lambda: ResUNet(R3D(features=4)), TALL),
    "LidcFCN": (lambda: LidcFCN(R3D(features=4, strides=(1, 1, 1, 2, 1, 2)), head_features=8), SHORT),
    "P3D": (lambda: P3D(depth=18, features=4), SHORT),
    "P3D, without bottlenecks": (lambda: P3D(depth="18ba", features=4), SHORT),
    "ResNetUNet": (lambda: ResNetUNet(depth=10, init_filters=4, decoder_features=(16, 8, 8, 4, 4)), TALL),
    "UniversalNetwork": (lambda: universal(GenesisUNet(init_filters=4)), SHORT),
    "UniversalNetwork of SwinUNETR": (lambda: universal(SwinUNETR(feature_size=12)), TALL),
    "DoDNet": (lambda: DoDNet(init_filters=4), SHORT),
    "UniMiSS": (lambda: UniMiSS(features=(8, 16, 16, 32)), TALL),
    "ValidUNet": (lambda: ValidUNet(features=(2, 3)), (20, 22, 26)),
    "PooledEncoder": (lambda: PooledEncoder(UNet(features=(4, 6, 8, 10))), SHORT),
    "RetinaDetector": (lambda: RetinaDetector(UNet(features=(4, 6, 8, 10)), features=8), SHORT),
    "SliceDetector": (lambda: SliceDetector(P3D(depth="18ba", features=4), features=8), SHORT),
    "SliceDetector, a weight for each slice": (
        lambda: SliceDetector(P3D(depth="18ba", features=4), slices=16, collapse="group", features=8),
        SHORT,
    ),
    "MONAI's DynUNet, adopted": (dynunet, SHORT),
    "MONAI's UNet, adopted": (monai_unet, SHORT),
}
each_network = pytest.mark.parametrize("label", BUILT)


def parameters_behind(tensor: Tensor) -> set[int]:
    """Return the parameters (by identity) from which autograd computed a tensor."""
    found, seen, waiting = set(), set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        waiting.extend(each for each, _ in node.next_functions)
    return found


def members(module: nn.Module | None) -> list[nn.Module]:
    """Return what a forward pass calls: of a list its members, of a bare parameter nothing."""
    if module is None:
        return []
    return list(module.children()) if isinstance(module, nn.ModuleList) else [module]


@cache
def trace(label: str) -> tuple[list[networks.Stage], list[tuple[str, int]]]:
    """Return a network's stages and each call of a module of theirs, with the last stage that its input had passed."""
    build, sides = BUILT[label]
    network = build()
    stages = network.stages()
    number = {id(each): n for n, stage in enumerate(stages) for each in stage_parameters(network, stage).values()}
    called: list[tuple[str, int]] = []

    def hook(name):
        def note(module: nn.Module, inputs: tuple[object, ...]) -> None:
            tensors = [each for group in inputs for each in (group if isinstance(group, list) else [group])]
            behind = set().union(*(parameters_behind(each) for each in tensors if isinstance(each, Tensor)))
            called.append((name, max((number[each] for each in behind), default=-1)))

        return note

    for stage in stages:
        for name in stage.modules:
            for member in members(dict(network.named_modules()).get(name)):
                member.register_forward_pre_hook(hook(name))
    network(torch.rand(2, 1, *sides))
    return stages, called


@each_network
def test_stages_begin_in_the_order_in_which_a_forward_pass_reaches_them(label):
    stages, calls = trace(label)
    stage_of = {name: stage.name for stage in stages for name in stage.modules}
    assert list(dict.fromkeys(stage_of[name] for name, _ in calls)) == [stage.name for stage in stages]


@each_network
def test_a_module_reads_its_own_stage_or_the_one_before(label):
    # So a block on a skip lies in the stage whose output it reads. A head may read several stages: levels of outputs.
    stages, calls = trace(label)
    stage_of = {name: number for number, stage in enumerate(stages) for name in stage.modules}
    read = [(name, stage_of[name], last) for name, last in calls]
    head = len(stages) - 1
    assert [each for each in read if each[1] != head and each[2] not in {each[1], each[1] - 1}] == []
    assert max(last for _, own, last in read if own == head) in {head, head - 1}


def test_the_blocks_on_the_skips_of_swin_unetr_lie_beside_what_they_read():
    stages = {stage.name: set(stage.modules) for stage in SwinUNETR(feature_size=12).stages()}
    assert stages["encoder.0"] == {"swinViT.patch_embed", "encoder1", "encoder2"}
    assert stages["encoder.1"] == {"swinViT.layers1.0", "encoder3"}
    assert stages["encoder.2"] == {"swinViT.layers2.0", "encoder4"}
    assert stages["encoder.4"] == {"swinViT.layers4.0", "encoder10"}


def test_no_network_of_the_package_is_left_out():
    abstract = {"Network", "Encoding", "Backbone", "Pyramid", "Detector"}
    classes = {name for name in networks.__all__ if isinstance(getattr(networks, name), type)}
    written = {name for name in classes if issubclass(getattr(networks, name), Network)} - abstract
    assert written <= {label.partition(",")[0].partition(" of ")[0] for label in BUILT}
