"""Each rule against what it promises of numbers: the answers of convolutions, not the shapes of kernels."""

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_atlas.contract import Contract
from lightning_atlas.intake.adapters import (
    InputChannels,
    KernelSize,
    NearestStage,
    Pair,
    PositionEmbeddings,
    chosen_adapters,
    kernel_for_channels,
    kernel_of_size,
    moved_tokens,
)
from lightning_atlas.intake.loading import load_weights
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.networks import ACSResNet, Network, NnUNet, ResUNet, Stage, STUNet, SwinUNETR, UNet, as_network

COUNTS = [(1, 3), (2, 4), (2, 5), (3, 4), (4, 1), (4, 3), (3, 2)]


def source_of(network: nn.Module, drop: str = "\0") -> SourceWeights:
    tensors = {name: each.clone() for name, each in network.state_dict().items() if not name.startswith(drop)}
    return SourceWeights(tensors, None, "some.pt", "0" * 64)


MORE = [(theirs, ours) for theirs, ours in COUNTS if theirs < ours]


@pytest.mark.parametrize(
    ("how", "theirs", "ours"), [*(("mean", *each) for each in COUNTS), *(("repeat", *each) for each in MORE)]
)
def test_equal_channels_are_answered_as_before(how, theirs, ours):
    kernel, plane = torch.randn(4, theirs, 3, 3, 3, dtype=torch.double), torch.randn(2, 1, 6, 6, 6, dtype=torch.double)
    value, _ = kernel_for_channels(kernel, ours, how)
    before, after = (F.conv3d(plane.expand(-1, each.shape[1], -1, -1, -1), each) for each in (kernel, value))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(("theirs", "ours"), COUNTS)
def test_with_zero_further_channels_change_nothing_and_missing_ones_count_as_zero(theirs, ours):
    kernel, image = torch.randn(4, theirs, 3, 3, 3), torch.randn(2, max(theirs, ours), 6, 6, 6)
    value, _ = kernel_for_channels(kernel, ours, "zero")
    known = image[:, :theirs].clone()
    known[:, ours:] = 0
    torch.testing.assert_close(F.conv3d(image[:, :ours], value), F.conv3d(known, kernel))


def test_each_repeated_channel_is_one_of_the_file_in_turn():
    kernel = torch.randn(4, 2, 3, 3, 3)
    value, words = kernel_for_channels(kernel, 5, "repeat")
    for ours, (theirs, copies) in enumerate([(0, 3), (1, 2), (0, 3), (1, 2), (0, 3)]):
        torch.testing.assert_close(value[:, ours], kernel[:, theirs] / copies)
    assert words == "repeated, and divided by 2 or 3"


SIZES = [((3, 3, 3), (5, 5, 5)), ((3, 3, 3), (1, 3, 5)), ((5, 5, 5), (3, 3, 3)), ((1, 3, 3), (3, 3, 3))]


@pytest.mark.parametrize(("old", "new"), [*SIZES, ((2, 2, 2), (4, 4, 4)), ((3, 3, 3), (4, 4, 4))])
def test_the_sum_of_a_kernel_is_kept_by_its_mean_and_that_of_a_constant_one_by_trilinear(old, new):
    kernel, constant = torch.randn(4, 2, *old, dtype=torch.double), torch.full((4, 2, *old), 0.7, dtype=torch.double)
    mean, _ = kernel_of_size(kernel, new, "mean")
    torch.testing.assert_close(mean.sum((2, 3, 4)), kernel.sum((2, 3, 4)))
    linear, words = kernel_of_size(constant, new, "trilinear")
    torch.testing.assert_close(linear.sum((2, 3, 4)), constant.sum((2, 3, 4)))
    upkern, _ = kernel_of_size(constant, new, "upkern")
    torch.testing.assert_close(upkern, torch.full((4, 2, *new), 0.7, dtype=torch.double))
    scale = float(linear.flatten()[0] / 0.7)
    assert words == f"trilinear, times {scale:.3g}"
    assert mean.shape == linear.shape == upkern.shape == (4, 2, *new)


def test_an_axis_whose_size_stays_keeps_what_lies_along_it():
    kernel = torch.randn(4, 2, 3, 3, 3)
    value, _ = kernel_of_size(kernel, (1, 3, 3), "mean")
    torch.testing.assert_close(value[:, :, 0], kernel.sum(2))
    spread, _ = kernel_of_size(value, (3, 3, 3), "mean")
    for plane in spread.unbind(2):
        torch.testing.assert_close(plane, kernel.mean(2))


@pytest.mark.parametrize("how", ["centre", "mean", "trilinear", "upkern"])
def test_a_kernel_of_the_same_size_is_the_same(how):
    kernel = torch.randn(4, 2, 3, 5, 3)
    assert torch.equal(kernel_of_size(kernel, (3, 5, 3), how)[0], kernel)


@pytest.mark.parametrize("new", [(5, 5, 5), (3, 7, 3)])
def test_a_kernel_in_the_middle_of_zeros_answers_as_before_and_is_cut_out_again(new):
    kernel, image = torch.randn(4, 2, 3, 3, 3), torch.randn(1, 2, 9, 9, 9)
    value, _ = kernel_of_size(kernel, new, "centre")
    after = F.conv3d(image, value, padding=[side // 2 for side in new])
    torch.testing.assert_close(after, F.conv3d(image, kernel, padding=1), rtol=1e-4, atol=1e-4)
    assert torch.equal(kernel_of_size(value, (3, 3, 3), "centre")[0], kernel)


def test_trilinear_is_between_the_values_of_the_old_kernel():
    line = torch.tensor([0.0, 3.0, 6.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 3, 3)
    value, _ = kernel_of_size(line.contiguous(), (5, 3, 3), "upkern")
    torch.testing.assert_close(value[0, 0, :, 1, 1], torch.tensor([0.0, 1.2, 3.0, 4.8, 6.0]))


def test_a_kernel_without_a_centre_is_refused():
    with pytest.raises(ValueError, match=r"3x3x3 has no centre in one of 4x3x3: give KernelSize how: trilinear"):
        kernel_of_size(torch.ones(1, 1, 3, 3, 3), (4, 3, 3), "centre")


def test_positions_on_the_same_grid_stay_and_constant_ones_stay_constant_on_any():
    tokens = torch.randn(24, 5)
    assert torch.equal(moved_tokens(tokens, (2, 3, 4), (2, 3, 4)), tokens)
    constant = torch.arange(5.0).expand(24, 5)
    torch.testing.assert_close(moved_tokens(constant, (2, 3, 4), (5, 2, 8)), torch.arange(5.0).expand(80, 5))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ramp_of_positions_is_a_ramp_at_the_same_places_of_the_field(axis):
    old, new = [4, 4, 4], [4, 4, 4]
    new[axis] = 8
    places = torch.tensor(list(product(*(range(side) for side in old))), dtype=torch.float32)
    moved = moved_tokens(places[:, [axis]] + 0.5, (4, 4, 4), (new[0], new[1], new[2])).view(new)
    finer = torch.tensor(list(product(*(range(side) for side in new))), dtype=torch.float32)[:, axis].view(new)
    inside = (finer > 0) & (finer < 7)
    torch.testing.assert_close(moved[inside], (finer[inside] + 0.5) / 2)


class Tokens(Network):
    """Patches with a learned position each, one token for the class before them, then a head."""

    def __init__(self, tokens: int, before: int = 0) -> None:
        super().__init__()
        self.patches = nn.Conv3d(1, 4, 2, stride=2)
        self.pos_embed = nn.Parameter(torch.randn(1, before + tokens, 4))
        self.head = nn.Conv3d(4, 2, 1)

    def stages(self):
        return [Stage("patches", "encoder", ("patches", "pos_embed")), Stage("head", "head", ("head",))]


def test_position_embeddings_come_from_another_grid_and_lose_a_class_token():
    trained, network = Tokens(8, before=1), Tokens(27)
    report = load_weights(network, source_of(trained), adapters=[PositionEmbeddings()])
    expected = F.interpolate(trained.pos_embed[0, 1:].T.view(1, 4, 2, 2, 2), size=(3, 3, 3), mode="trilinear")
    torch.testing.assert_close(network.pos_embed[0].T, expected.view(4, -1))
    assert report.reshaped[0].how == "positions 2x2x2 -> 3x3x3: trilinear; 1 tokens before them left out"
    assert report.fresh_names == set()


def test_a_grid_that_is_no_cube_must_be_told():
    trained, network = Tokens(12), Tokens(27)
    with pytest.raises(ValueError, match=r"pos_embed has 12 tokens, .* PositionEmbeddings source_grid: \[i, j, k\]"):
        load_weights(network, source_of(trained), adapters=[PositionEmbeddings()])
    load_weights(network, source_of(trained), adapters=[PositionEmbeddings(source_grid=(3, 2, 2))])
    expected = moved_tokens(trained.pos_embed[0], (3, 2, 2), (3, 3, 3))
    torch.testing.assert_close(network.pos_embed[0], expected)
    with pytest.raises(ValueError, match="27 tokens, which are no 5x5x5"):
        load_weights(network, source_of(trained), adapters=[PositionEmbeddings((3, 2, 2), (5, 5, 5))])


def test_relative_positions_of_a_window_go_into_a_smaller_one():
    trained, network = (SwinUNETR(feature_size=12) for _ in range(2))
    name = "swinViT.layers1.0.blocks.0.attn"
    attentions = [each for key, each in network.named_modules() if key.endswith(".attn")]
    for attention in attentions:
        heads = attention.get_parameter("relative_position_bias_table").shape[1]
        attention.register_parameter("relative_position_bias_table", nn.Parameter(torch.randn(5**3, heads)))
        attention.register_buffer("relative_position_index", torch.zeros(27, 27, dtype=torch.long))
    report = load_weights(network, source_of(trained), adapters=[PositionEmbeddings()])
    ours, theirs = (each.get_parameter(f"{name}.relative_position_bias_table") for each in (network, trained))
    torch.testing.assert_close(ours, moved_tokens(theirs, (13, 13, 13), (5, 5, 5)))
    assert not report.fresh_names
    assert {each.name.rsplit("_", 1)[1] for each in report.reshaped} == {"table", "index"}


def test_relative_positions_of_a_window_that_is_no_cube_need_its_grid():
    name, tables = "attn.relative_position_bias_table", (torch.randn(13 * 13 * 7, 3), torch.randn(5**3, 3))
    pair = Pair(name, *tables, None)
    taken = PositionEmbeddings((13, 13, 7)).take(pair)
    assert taken is not None
    torch.testing.assert_close(taken.value, moved_tokens(tables[0], (13, 13, 7), (5, 5, 5)))
    for given in (None, (13, 13, 6)):
        with pytest.raises(ValueError, match=r"no cube.*source_grid: \[i, j, k\], 2 x window - 1"):
            PositionEmbeddings(given).take(pair)


NAMED = [
    ("repeat", "t2 t1", [[0, 1], [1, 0]], "t2, t1 by name"),
    ("zero", "t2 t1", [[0, 1], [1, 0]], "t2, t1 by name"),
    ("mean", "t2 t1", [[0, 1], [1, 0]], "t2, t1 by name"),
    ("repeat", "flair t1 t2", [[0.5, 0], [0.5, 0], [0, 1]], "t1, t2 by name; flair repeats t1, t2"),
    ("mean", "flair t1 t2", [[1 / 3, 1 / 3], [2 / 3, 0], [0, 2 / 3]], "t1, t2 by name; flair the mean of t1, t2"),
    ("zero", "flair t1 t2", [[0, 0], [1, 0], [0, 1]], "t1, t2 by name; flair 0"),
    ("repeat", "flair t1", [[0, 1], [1, 0]], "t1 by name; flair repeats t2"),
    ("mean", "flair t1", [[0, 1], [1, 0]], "t1 by name; flair the mean of t2"),
    ("zero", "flair t1", [[0, 0], [1, 0]], "t1 by name; flair 0; t2 left out"),
    ("mean", "t2", [[1, 1]], "t2 by name; t1 shared by all"),
    ("zero", "t2", [[0, 1]], "t2 by name; t1 left out"),
]


@pytest.mark.parametrize(("how", "names", "shares", "words"), NAMED)
@pytest.mark.parametrize("sides", [(3, 3, 3), (3, 3)])
def test_channels_that_both_sides_name_go_by_name(how, names, shares, words, sides):
    """`shares` says how much of t1 and t2 each channel here is."""
    ours, kernel = tuple(names.split()), torch.randn(4, 2, *sides)
    pair = Pair("stem", kernel, torch.empty(4, len(ours), *sides), (2, len(ours)), (("t1", "t2"), ours))
    taken = InputChannels(how).take(pair)
    assert taken is not None
    torch.testing.assert_close(taken.value, torch.einsum("ci,oi...->oc...", torch.tensor(shares).float(), kernel))
    assert taken.how == f"2 -> {len(ours)} input channels: {words}"
    if how != "zero":
        torch.testing.assert_close(taken.value.sum(1), kernel.sum(1))


@pytest.mark.parametrize("ours", [("t1", "t2"), ("a", "b"), ("t2",), ()])
def test_kernels_of_as_many_channels_stay_where_no_name_says_otherwise(ours):
    pair = Pair("stem", torch.randn(4, 2, 3, 3, 3), torch.empty(4, 2, 3, 3, 3), (2, 2), (("t1", "t2"), ours))
    assert [InputChannels(how).take(pair) for how in ("repeat", "mean", "zero")] == [None] * 3


@pytest.mark.parametrize(
    ("build", "sides"),
    [
        (lambda: UNet(in_channels=2, features=(4, 6)), (8, 8, 8)),
        (lambda: STUNet(2, 2, (4, 6, 8), (1, 1, 1), (1, 2, 2)), (8, 8, 8)),
        (lambda: NnUNet(2, 2, (4, 6, 8), (3,) * 3, (1, 2, 2), (1,) * 5), (8, 8, 8)),
        (lambda: ResUNet(ACSResNet(in_channels=2, features=8)), (32, 32, 16)),
    ],
    ids=["UNet", "a shortcut from the image", "kernels of several names", "kernels in planes"],
)
def test_channels_in_another_order_are_answered_as_before(build, sides):
    trained, network = build().eval(), build().eval()
    source = replace(source_of(trained), contract=Contract(channels=("t1", "t2")))
    report = load_weights(network, source, adapters=[InputChannels()], channels=("t2", "t1"))
    image = torch.randn(1, 2, *sides)
    with torch.no_grad():
        expected, found = trained(image), network(image.flip(1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert {each.how for each in report.reshaped} == {"2 -> 2 input channels: t2, t1 by name"}


def test_a_layer_as_wide_as_the_image_leaves_open_which_kernels_read_it():
    names = ("t1", "t2"), ("t2", "t1")
    pair = Pair("stem", torch.randn(2, 2, 3, 3, 3), torch.empty(2, 2, 3, 3, 3), (2, 2), names)
    with pytest.raises(ValueError, match=r"stem has as many outputs as the image has channels.*weights, t1, t2"):
        InputChannels().take(pair)


def blocks(number: int, width: int = 4, channels: int = 1, kernel: int = 3) -> Network:
    deeper = (nn.Conv3d(width, width, kernel, padding=kernel // 2) for _ in range(number))
    network = nn.Sequential()
    network.add_module("blocks", nn.Sequential(nn.Conv3d(channels, width, 1), *deeper))
    network.add_module("head", nn.Conv3d(width, 2, 1))
    return as_network(network, [f"blocks.{n}" for n in range(number + 1)], [], ["head"])


def test_blocks_that_the_file_lacks_are_filled_by_the_nearest_of_the_same_shapes():
    trained, network = blocks(2), blocks(5)
    without = load_weights(copy.deepcopy(network), source_of(trained), required_share=0.0)
    assert {each.name.split(".")[1] for each in without.fresh} == {"3", "4", "5"}
    report = load_weights(network, source_of(trained), adapters=[NearestStage()])
    for stage in (3, 4, 5):
        for part in ("weight", "bias"):
            mine, theirs = (each.get_parameter(f"blocks.{at}.{part}") for each, at in ((network, stage), (trained, 2)))
            assert torch.equal(mine, theirs)
    assert report.fresh_names == set()
    assert report.left_over == []
    assert "blocks.5.bias from blocks.2.bias, the nearest by name" in str(report)


def test_a_block_is_filled_as_a_whole_or_not_at_all():
    network = blocks(3)
    source = source_of(blocks(3), drop="blocks.3.")
    source.tensors["blocks.2.bias"] = torch.zeros(7)
    source.tensors["blocks.2.weight"] = torch.zeros(7, 4, 3, 3, 3)
    report = load_weights(network, source, required_share=0.0, adapters=[NearestStage()])
    assert {each.source for each in report.reshaped} == {"blocks.1.weight", "blocks.1.bias"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"a.1.w": 1, "a.1.b": 3}, None),
        ({"a.1.w": 1, "a.1.b": 2}, "a.1"),
        ({"a.1.w": 1, "a.1.b": 2, "a.3.w": 1, "a.3.b": 2}, "a.1"),
        ({"a.9.w": 1, "a.9.b": 2, "a.11.w": 1, "a.11.b": 2}, "a.9"),
        ({"a.3.w": 1, "a.4.w": 1, "a.4.b": 2}, "a.4"),
        ({"b.1.w": 1, "b.1.b": 2}, None),
    ],
)
def test_the_nearest_block_is_by_number_and_of_two_the_lower(given, expected):
    targets = {"a.2.w": 1, "a.2.b": 2}
    found = NearestStage().donors(targets, given, lambda name, other: given[other] == targets[name])
    assert found == ({f"a.2.{part}": f"{expected}.{part}" for part in "wb"} if expected else {})


def test_several_rules_act_in_turn_and_are_reported_in_one_line():
    trained, network = UNet(in_channels=2, features=(4, 6)), UNet(in_channels=4, features=(4, 6))
    name = next(iter(network.state_dict()))
    layer = network.get_submodule(name.rpartition(".")[0])
    layer.weight = nn.Parameter(torch.randn(4, 4, 5, 5, 5))
    report = load_weights(network, source_of(trained), adapters=[InputChannels("mean"), KernelSize("centre")])
    expected = F.pad(trained.get_parameter(name).sum(1, keepdim=True) / 4, [1] * 6).expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(layer.weight, expected)
    assert [str(each.how) for each in report.reshaped] == [
        "2 -> 4 input channels: sum divided by 4; kernel 3x3x3 -> 5x5x5: its centre"
    ]
    assert report.encoder_share == 1.0


def test_channels_are_those_of_the_image_and_not_of_a_wider_layer():
    narrow, wide = blocks(1, width=4, channels=2), blocks(1, width=8, channels=3)
    with pytest.raises(ValueError, match="are required"):
        load_weights(wide, source_of(narrow), adapters=[InputChannels()])
    with pytest.raises(ValueError, match=r"reads 3 channels in the file and 2 here.*how: mean"):
        load_weights(blocks(1, channels=2), source_of(blocks(1, channels=3)), adapters=[InputChannels()])


def test_other_channels_that_a_recipe_allows_are_repeated_unless_it_says_how():
    assert chosen_adapters(None, ["channels"]) == (InputChannels("repeat"),)
    assert chosen_adapters([InputChannels("zero")], ["channels", "modality"]) == (InputChannels("zero"),)
    assert chosen_adapters([KernelSize()], ["modality"]) == (KernelSize(),)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_come_out_in_that_of_the_network(dtype):
    trained, network = blocks(2, channels=1), blocks(3, channels=3, kernel=5)
    source = source_of(trained)
    source.tensors.update({name: each.to(dtype) for name, each in source.tensors.items()})
    load_weights(network, source, adapters=[InputChannels(), KernelSize("upkern"), NearestStage()])
    assert {each.dtype for each in network.state_dict().values()} == {torch.float32}
    stem = source.tensors["blocks.0.weight"].float() / 3
    torch.testing.assert_close(network.get_parameter("blocks.0.weight")[:, :1], stem)
