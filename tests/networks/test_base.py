import pytest
import torch
from monai.networks.nets.dynunet import DynUNet
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from torch.nn.utils.parametrizations import weight_norm

from lightning_atlas.networks import GenesisUNet, Network, NnUNet, SegResNet, Stage, STUNet, UNet, as_network
from lightning_atlas.networks.base import (
    check_stages,
    output_layer,
    resize_output,
    stage_parameters,
    stage_tensors,
)
from lightning_atlas.networks.depth import Conv3d


def unet() -> UNet:
    return UNet(features=(4, 6, 8, 10))


def segresnet() -> SegResNet:
    return SegResNet(init_filters=8, blocks_down=(1, 1, 1, 2), dropout=0.1)


def dynunet() -> Network:
    sizes = [2, 2, 2]
    network = DynUNet(3, 1, 2, [3, 3, 3, 3], [1, *sizes], sizes, filters=[4, 6, 8, 10], norm_name="batch")
    encoder = ["input_block", "downsamples.0", "downsamples.1", "bottleneck"]
    return as_network(network, encoder, ["upsamples.0", "upsamples.1", "upsamples.2"], ["output_block"], 8)


def genesis_unet() -> GenesisUNet:
    return GenesisUNet(init_filters=4)


def nnunet() -> NnUNet:
    return NnUNet(1, 2, (4, 6, 8, 10), (3,) * 4, (1, 2, 2, 2), (1,) * 7)


def residual_nnunet() -> NnUNet:
    return NnUNet(1, 2, (4, 6, 8, 8), (3,) * 4, (1, 2, 2, 2), (1, 1, 1, 2, 1, 1, 1), residual=True)


def stu_net() -> STUNet:
    return STUNet(1, 2, (4, 6, 8, 10), (1, 2, 1, 1), (1, 2, 2, 2))


networks = pytest.mark.parametrize("build", [unet, segresnet, dynunet, genesis_unet, nnunet, residual_nnunet, stu_net])


class Staged(Network):
    """A network whose stages the test writes; `offset` and `seen` lie outside every submodule."""

    def __init__(self, *stages: Stage) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.last = nn.Linear(2, 3)
        self.offset = nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.zeros(1))
        self.written = stages

    def stages(self) -> list[Stage]:
        return list(self.written)


@networks
@pytest.mark.parametrize("sides", [(16, 16, 16), (32, 16, 24)])
def test_the_output_lies_on_the_grid_of_the_input(build, sides):
    assert build()(torch.rand(2, 1, *sides)).shape == (2, 2, *sides)


@networks
def test_a_side_that_does_not_fit_is_refused_with_the_next_that_does(build):
    with pytest.raises(ValueError, match=r"multiples of 8.* 16 x 17 x 24 voxels.* 16 x 24 x 24 voxels"):
        build()(torch.rand(1, 1, 16, 17, 24))


@networks
def test_every_state_dict_entry_lies_in_exactly_one_stage(build):
    network = build()
    stages = [stage_tensors(network, stage).values() for stage in network.stages()]
    held = [tensor.data_ptr() for tensors in stages for tensor in tensors]
    assert sorted(held) == sorted({tensor.data_ptr() for tensor in network.state_dict().values()})


@networks
def test_stages_stand_in_the_order_in_which_a_forward_pass_calls_them(build):
    network = build()
    listed = [name for stage in network.stages() for name in stage.modules]
    called = []
    for name in listed:
        network.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.append(name))
    network(torch.rand(1, 1, 16, 16, 16))
    assert called == listed


@networks
def test_the_parts_follow_each_other_and_the_head_is_last(build):
    parts = [stage.part for stage in build().stages()]
    assert parts == ["encoder"] * 4 + ["decoder"] * 3 + ["head"]


@networks
@pytest.mark.parametrize("outputs", [1, 7])
def test_resizing_the_output_touches_nothing_but_the_output_layer(build, outputs):
    network = build()
    before = dict(network.named_parameters())
    name = output_layer(network)
    resize_output(network, outputs)
    after = dict(network.named_parameters())
    fresh = {key for key in after if key.startswith(f"{name}.")}
    assert fresh
    assert list(after) == list(before)
    assert {key for key in after if after[key] is not before[key]} == fresh
    assert network(torch.rand(1, 1, 16, 16, 16)).shape[1] == outputs
    check_stages(network)


@networks
def test_resizing_to_the_same_number_keeps_the_layer(build):
    network = build()
    before = network.get_submodule(output_layer(network))
    resize_output(network, 2)
    assert network.get_submodule(output_layer(network)) is before


@networks
def test_the_axis_of_the_outputs_is_the_one_along_which_resizing_changes_their_number(build):
    network = build()
    before = {name: tensor.shape for name, tensor in network.state_dict().items()}
    network.resize(5)
    after = {name: tensor.shape for name, tensor in network.state_dict().items()}
    changed = {name: [old != new for old, new in zip(before[name], after[name], strict=True)] for name in after}
    axes = {name: sides.index(True) for name, sides in changed.items() if any(sides)}
    assert axes
    assert network.output_axes() == axes


def test_the_outputs_of_a_transposed_convolution_lie_along_its_second_axis():
    network = as_network(nn.Sequential(nn.ConvTranspose3d(4, 2, 3)), [], [], ["0"])
    assert network.output_axes() == {"0.weight": 1, "0.bias": 0}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 2, bias=False, dtype=torch.float64),
        nn.Conv3d(4, 2, (3, 3, 1), padding=(1, 1, 0), padding_mode="replicate"),
        nn.ConvTranspose3d(4, 2, 3, stride=2, padding=1, output_padding=1),
        nn.Conv3d(4, 2, 1, device="meta"),
        Conv3d(4, 2, 3, padding=1),
    ],
)
def test_a_fresh_output_layer_is_what_torch_would_have_built(layer):
    network = as_network(nn.Sequential(layer), [], [], ["0"])
    described = repr(layer)
    resize_output(network, 5)
    new = network.get_submodule("0")
    assert repr(new) == described.replace("out_features=2", "out_features=5").replace("(4, 2,", "(4, 5,")
    assert type(new) is type(layer)
    assert (new.weight.dtype, new.weight.device) == (layer.weight.dtype, layer.weight.device)


@pytest.mark.parametrize("transposed", [False, True])
def test_groups_of_an_output_layer_stay(transposed):
    layer = (nn.ConvTranspose3d if transposed else nn.Conv3d)(4, 2, 1, groups=2)
    network = as_network(nn.Sequential(layer), [], [], ["0"])
    network.resize(6)
    assert network(torch.randn(1, 4, 2, 2, 2)).shape == (1, 6, 2, 2, 2)
    with pytest.raises(ValueError, match=r"Conv.*3d, has 2 groups, which do not divide 5 outputs"):
        network.resize(5)


def test_an_output_layer_with_tensors_of_its_own_is_not_resized():
    network = as_network(nn.Sequential(weight_norm(nn.Conv3d(4, 2, 1))), [], [], ["0"])
    with pytest.raises(ValueError, match=r"\(parametrizations.weight.original0, .*\): build the network with"):
        network.resize(5)


def test_a_fresh_output_layer_has_the_spread_of_a_default_initialisation():
    network = UNet(features=(16, 16))
    resize_output(network, 2000)
    assert network.head.weight.std().item() == pytest.approx((1 / 16 / 3) ** 0.5, rel=0.05)


def test_a_layer_with_two_names_is_replaced_under_both():
    layer = nn.Linear(2, 2)
    network = nn.Module()
    network.first, network.second = nn.Sequential(layer), nn.Sequential(layer)
    resize_output(as_network(network, [], [], ["second"]), 3)
    assert network.first[0] is network.second[0]
    assert network.first[0].out_features == 3


def test_a_head_without_a_layer_that_fits_says_so():
    network = Staged(Stage("end", "head", ("offset", "body.1")))
    with pytest.raises(ValueError, match=r"head of Staged \(offset, body.1\) holds no Conv3d"):
        output_layer(network)


def test_a_bare_parameter_and_a_bare_buffer_can_be_in_a_stage():
    network = Staged(Stage("all", "encoder", ("offset", "seen", "body")), Stage("head", "head", ("last",)))
    check_stages(network)
    stage = network.stages()[0]
    assert set(stage_tensors(network, stage)) == {
        "offset",
        "seen",
        *(f"body.0.{name}" for name in ("weight", "bias")),
        *(f"body.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    }
    assert set(stage_parameters(network, stage)) == {
        "offset", "body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([("body",), ("last", "offset")], "in no stage: seen"),
        ([("body",), ("seen", "offset")], r"in no stage: last\.weight, last\.bias"),
        ([("body", "offset", "seen"), ("last", "body.0")], r"several stages: body\.0\.weight \(0, 1\), body\.0\.bias"),
        ([("body", "offset", "seen"), ("lats",)], "no module or parameter 'lats'; nearest: last"),
        ([("",), ("last",)], "no module or parameter ''; nearest: body, last"),
        ([("train",), ("last",)], "no module or parameter 'train'"),
    ],
)
def test_stages_that_do_not_cover_are_refused_by_name(stages, told):
    with pytest.raises(ValueError, match=told):
        check_stages(Staged(*(Stage(str(each), "encoder", modules) for each, modules in enumerate(stages))))


def test_two_stages_of_one_name_are_refused():
    network = Staged(Stage("a", "encoder", ("body", "offset", "seen")), Stage("a", "head", ("last",)))
    with pytest.raises(ValueError, match="names of several stages: a"):
        check_stages(network)


def test_a_parameter_tied_across_two_stages_is_found_by_identity():
    network = Staged(Stage("a", "encoder", ("body", "offset", "seen")), Stage("b", "head", ("last",)))
    network.last.weight = network.get_parameter("body.0.weight")
    with pytest.raises(ValueError, match=r"several stages: body\.0\.weight \(a, b\)"):
        check_stages(network)


@networks
def test_stages_give_the_parameters_that_sharding_put_in_place(build, tmp_path):
    network = build()
    before = {id(parameter) for parameter in network.parameters()}
    names = [list(stage_tensors(network, stage)) for stage in network.stages()]
    init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        for stage in network.stages():
            fully_shard([network.get_submodule(name) for name in stage.modules])
        fully_shard(network)
        network(torch.rand(1, 1, 16, 16, 16)).mean().backward()
    finally:
        destroy_process_group()
    found = [parameter for stage in network.stages() for parameter in stage_parameters(network, stage).values()]
    check_stages(network)
    assert {id(parameter) for parameter in found} == {id(parameter) for parameter in network.parameters()}
    assert before.isdisjoint(id(parameter) for parameter in found)
    assert all(parameter.grad is not None for parameter in found)
    assert [list(stage_tensors(network, stage)) for stage in network.stages()] == names
