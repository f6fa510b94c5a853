"""Inflated 2D ResNets against the 2D ResNet itself, a volume of equal slices against the picture."""

import hashlib
import re
from dataclasses import replace

import pytest
import torch
from flat_resnet import as_volume, drawn_flat
from torch import Tensor, nn

from lightning_atlas.contract import Contract, differences
from lightning_atlas.intake import zoo
from lightning_atlas.intake.loading import IntakeReport, as_adapted, load_weights, read_weights
from lightning_atlas.intake.two_d import Inflation, KernelAxes, inflated
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.networks import P3D, R3D, ACSResNet, DepthPolicy, Network, PooledEncoder, as_network

REPLICATE = DepthPolicy(padding="replicate")
PRESERVE = DepthPolicy()


def source_of(network: nn.Module, prefix: str = "", drop: str = "\0") -> SourceWeights:
    tensors = {prefix + key: each.clone() for key, each in network.state_dict().items() if not key.startswith(drop)}
    return SourceWeights(tensors, None, "flat.pth", "0" * 64)


def load(network: Network, source: SourceWeights, *adapters) -> IntakeReport:
    return load_weights(network.eval(), source, required_share=1.0, adapters=adapters)


def picture(channels: int = 1, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 40, 48, generator=generator)


def difference(found: list[Tensor], flat: list[Tensor]) -> float:
    """Return by how much each slice differs from the flat features, as a share of the largest of these."""
    pairs = zip(found, [each.transpose(2, 3).unsqueeze(-1) for each in flat], strict=True)
    return max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    ("how", "policy", "slices", "same"),
    [
        ("centre", PRESERVE, 1, True),
        ("centre", PRESERVE, 3, True),
        ("centre", PRESERVE, 9, True),
        ("mean", REPLICATE, 1, True),
        ("mean", REPLICATE, 5, True),
        ("mean", PRESERVE, 3, False),
        ("mean", PRESERVE, 9, False),
    ],
)
def test_equal_slices_are_answered_as_the_picture_was(how, policy, slices, same):
    flat, network, grey = drawn_flat(1), R3D(features=8, depth_policy=policy), picture()
    report = load(network, source_of(flat), Inflation(how))
    found = difference(network.levels(as_volume(grey, slices)), flat.levels(grey.expand(-1, 3, -1, -1)))
    assert (found < 1e-5) == same
    assert report.fresh_names == set()
    assert {each.name for each in report.left_over} == {"fc.weight", "fc.bias"}


def test_a_mean_is_right_where_no_zeros_reach_and_off_elsewhere():
    """README has these numbers: the least and the most of five levels, of three slices and of nine."""
    flat, network, grey = drawn_flat(1), R3D(features=8, depth_policy=PRESERVE), picture()
    load(network, source_of(flat), Inflation("mean"))
    wanted = [[each] for each in flat.levels(grey.expand(-1, 3, -1, -1))]
    thin, thick = (network.levels(as_volume(grey, slices)) for slices in (3, 9))
    off = [difference([ours], theirs) for ours, theirs in zip(thin, wanted, strict=True)]
    assert (min(off), max(off)) == pytest.approx((0.58, 0.89), abs=0.01)
    off = [difference([ours], theirs) for ours, theirs in zip(thick, wanted, strict=True)]
    assert (min(off), max(off)) == pytest.approx((0.43, 0.68), abs=0.01)
    centre = [difference([ours[..., 4:5]], theirs) for ours, theirs in zip(thick, wanted, strict=True)]
    assert max(centre) == pytest.approx(0.08, abs=0.01)
    assert difference([thick[0][..., 3:6]], wanted[0]) < 1e-5


def test_a_mean_beside_zeros_is_told():
    (note,) = load(R3D(features=8), source_of(drawn_flat(1)), Inflation("mean")).notes
    assert re.search(r"in 17 layers, such as conv1: .* how: centre, or .* depth_policy: {padding: replicate}$", note)
    repeating, thin = R3D(features=8, depth_policy=REPLICATE), ACSResNet(features=8, kernels="slice")
    for network, rule in ((repeating, Inflation("mean")), (thin, Inflation("mean")), (R3D(features=8), Inflation())):
        assert load(network, source_of(drawn_flat(1)), rule).notes == []


def test_a_mean_beside_zeros_that_stay_has_one_remedy():
    network = as_network(nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.Conv3d(4, 2, 1)), ["0"], [], ["1"])
    flat = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
    assert load(network, source_of(flat), Inflation("mean")).notes[0].endswith("; take how: centre")


@pytest.mark.parametrize("bottlenecks", [False, True])
def test_the_sum_over_k_is_the_kernel_with_rows_along_j_and_columns_along_i(bottlenecks):
    flat = drawn_flat(2, 50 if bottlenecks else 18)
    for how in ("centre", "mean"):
        network = R3D(in_channels=3, depth=50 if bottlenecks else 18, features=8)
        load(network, source_of(flat), Inflation(how))
        theirs = flat.state_dict()
        for name, each in network.state_dict().items():
            expected = theirs[name].transpose(2, 3) if each.ndim == 5 else theirs[name]
            torch.testing.assert_close(each.sum(4) if each.ndim == 5 else each, expected)


def test_statistics_and_counters_of_norms_survive():
    flat, network = drawn_flat(5), R3D(features=8)
    load(network, source_of(flat), Inflation())
    theirs = flat.state_dict()
    kept = [name for name, each in network.state_dict().items() if each.ndim < 2]
    assert len(kept) == 5 * 20
    assert all(torch.equal(network.state_dict()[name], theirs[name]) for name in kept)
    assert network.get_buffer("bn1.num_batches_tracked") == 12


def test_two_2d_networks_give_two_3d_networks():
    volume, networks = as_volume(picture(), 3), [R3D(features=8) for _ in range(3)]
    for seed, network in zip((1, 2, 1), networks, strict=True):
        load(network, source_of(drawn_flat(seed)), Inflation())
    first, second, again = (network.levels(volume)[-1] for network in networks)
    assert torch.equal(first, again)
    assert (first - second).abs().max() > 0.1 * first.abs().max()


@pytest.mark.parametrize(("colours", "share"), [("sum", 1.0), ("mean", 1 / 3)])
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_an_image_of_equal_channels_is_answered_by_the_first_kernel_as_a_grey_picture(colours, share, channels):
    flat, network, grey = drawn_flat(1), R3D(in_channels=channels, features=8), picture()
    report = load(network, source_of(flat), Inflation("centre", colours))
    found = network.conv1(as_volume(grey, 3).expand(-1, channels, -1, -1, -1))
    assert difference([found], [share * flat.conv1(grey.expand(-1, 3, -1, -1))]) < 1e-5
    stem = next(each.how for each in report.reshaped if each.name == "conv1.weight")
    assert stem.startswith(f"3 -> {channels} input channels: ")
    assert ("divided by 3; in" in stem) or colours == "sum"


def test_colours_stay_colours_where_the_image_has_them():
    flat, network, colour = drawn_flat(1), R3D(in_channels=3, features=8), picture(3)
    report = load(network, source_of(flat), Inflation())
    assert difference(network.levels(as_volume(colour, 3)), flat.levels(colour)) < 1e-5
    assert not any("channels" in each.how for each in report.reshaped)


@pytest.mark.parametrize("slices", [1, 3, 9])
def test_a_pseudo_3d_network_of_a_caffe_resnet_answers_equal_slices_as_the_picture_was(slices):
    flat, network, grey = drawn_flat(1, 50, caffe=True), P3D(depth=63, norm="batch", features=8), picture()
    report = load(network, source_of(flat, "module."), Inflation("p3d"))
    wanted = flat.levels(grey.expand(-1, 3, -1, -1))
    assert difference(network.levels(as_volume(grey, slices)), wanted) < 1e-5
    assert report.fresh_names == set()


def test_kernels_across_slices_learn_though_they_are_muted():
    network = P3D(depth="18ba", norm="batch", features=8)
    load_weights(network, source_of(drawn_flat(1)), required_share=1.0, adapters=[Inflation("p3d")])
    with torch.enable_grad():
        network.train().encoded(as_volume(picture(), 3)).square().sum().backward()
    muted = [network.get_parameter(f"layer1.1.norm_{each}.weight") for each in (2, 4)]
    assert all((each == 0).all() and each.grad is not None and each.grad.abs().max() > 0 for each in muted)
    identity = network.get_parameter("layer1.0.conv2.weight")
    assert torch.equal(identity[:, :, 0, 0, 1], torch.eye(8))


def test_flat_kernels_in_three_planes_take_the_kernels_as_they_are():
    flat, network = drawn_flat(1), ACSResNet(in_channels=3, features=8)
    load(network, source_of(flat), Inflation())
    theirs = flat.state_dict()
    for name, each in network.state_dict().items():
        assert torch.equal(each.squeeze(4).transpose(2, 3) if each.ndim == 5 else each, theirs[name])
    grey = ACSResNet(features=8)
    assert "3 -> 1 input channels: sum" in str(load(grey, source_of(flat), Inflation()))
    torch.testing.assert_close(grey.get_parameter("conv1.weight"), theirs["conv1.weight"].sum(1, keepdim=True))


@pytest.mark.parametrize("slices", [1, 4])
def test_kernels_in_single_slices_answer_equal_slices_as_the_picture_was(slices):
    flat, network, grey = drawn_flat(1), ACSResNet(features=8, kernels="slice"), picture()
    report = load(network, source_of(flat), Inflation("slice"))
    wanted = flat.levels(grey.expand(-1, 3, -1, -1))
    assert difference(network.levels(as_volume(grey, slices)), wanted) < 1e-5
    assert report.fresh_names == set()


def test_an_encoder_inside_another_network_takes_them_by_name():
    flat, network = drawn_flat(1), PooledEncoder(R3D(features=8))
    report = load(network, source_of(flat, "module."), Inflation())
    torch.testing.assert_close(
        network.get_parameter("backbone.layer2.0.bn1.bias"), flat.state_dict()["layer2.0.bn1.bias"]
    )
    assert {each.name for each in report.fresh} == {"head.weight", "head.bias"}


def test_a_layer_that_has_no_place_is_an_error():
    source = source_of(drawn_flat(1))
    source.tensors["layer1.2.conv1.weight"] = torch.zeros(8, 8, 3, 3)
    with pytest.raises(ValueError, match=r"1 2D kernels .* no place in the network: layer1\.2\.conv1\.weight"):
        load(R3D(features=8), source, Inflation())
    report = load(R3D(features=8), source, Inflation(leaves=r"^(fc|layer1\.2)\."))
    assert len(report.left_over) == 3
    with pytest.raises(ValueError, match=r"2D kernels .*\nGive the network their depth and channels"):
        load_weights(R3D(features=8), source_of(drawn_flat(1, 50)), required_share=0.0, adapters=[Inflation()])


def test_statistics_without_a_place_are_an_error():
    with pytest.raises(ValueError, match=r"statistics of 20 batch norms .* set norm: batch"):
        load_weights(R3D(norm="group", features=8), source_of(drawn_flat(1)), adapters=[Inflation()])


@pytest.mark.parametrize("how", ["centre", "mean", "slice"])
def test_a_pseudo_3d_network_takes_no_other_rule(how):
    with pytest.raises(ValueError, match=rf"how: {how} leaves the kernels of P3D across .*: take how: p3d$"):
        load_weights(P3D(norm="batch", features=8), source_of(drawn_flat(1, 50)), adapters=[Inflation(how)])


@pytest.mark.parametrize("statistics", [True, False])
def test_a_pseudo_3d_network_without_statistics_is_refused(statistics):
    source = source_of(drawn_flat(1, 50))
    kept = {name: each for name, each in source.tensors.items() if statistics or "running" not in name}
    with pytest.raises(ValueError, match=r"by the statistics of batch norms, .* set norm: batch .* take R3D$"):
        load_weights(P3D(features=8), replace(source, tensors=kept), adapters=[Inflation("p3d")])


def test_group_norms_of_a_2d_network_go_by_their_names_here():
    source = source_of(drawn_flat(1))
    affine = {name: each for name, each in source.tensors.items() if "running" not in name and "num_" not in name}
    network = R3D(norm="group", features=8)
    load(network, SourceWeights(affine, None, "flat.pth", "0"), Inflation())
    assert torch.equal(network.get_parameter("layer1.0.gn2.weight"), affine["layer1.0.bn2.weight"])


def with_deep_stem(pooled: bool) -> SourceWeights:
    tensors = source_of(drawn_flat(1, features=16), drop="conv1.").tensors
    for number, (inputs, outputs) in zip((0, 3, 6), ((3, 8), (8, 8), (8, 16)), strict=True):
        tensors[f"conv1.{number}.weight"] = torch.randn(outputs, inputs, 3, 3)
    for number in (1, 4):
        tensors |= {f"conv1.{number}.{part}": torch.full((8,), float(number)) for part in ("weight", "bias")}
        tensors |= {f"conv1.{number}.running_{part}": torch.ones(8) for part in ("mean", "var")}
        tensors[f"conv1.{number}.num_batches_tracked"] = torch.tensor(3)
    if pooled:  # an average pool takes the place of the convolution
        names = [name for name in tensors if ".downsample." in name]
        tensors |= {re_numbered(name): tensors.pop(name) for name in sorted(names, reverse=True)}
    return SourceWeights(tensors, None, "timm.pth", "0" * 64)


def re_numbered(name: str) -> str:
    return name.replace("downsample.1.", "downsample.2.").replace("downsample.0.", "downsample.1.")


def test_a_first_layer_of_three_kernels_goes_into_a_deep_stem_or_is_refused():
    network, source = R3D(features=16, stem="deep"), with_deep_stem(pooled=False)
    report = load(network, source, Inflation())
    assert report.fresh_names == set()
    assert (network.get_parameter("stem.1.bn.weight") == 4.0).all()
    assert torch.equal(network.get_parameter("stem.2.bn.bias"), source.tensors["bn1.bias"])
    for other in (R3D(features=16), ACSResNet(features=16), P3D(depth="18ba", norm="batch", features=16)):
        with pytest.raises(ValueError, match=r"three kernels .* only R3D with stem: deep\nhas: .*, or take weights"):
            load(other, source, Inflation("p3d"))
    with pytest.raises(ValueError, match=r"timm's resnet18d, which no network here has \(layer\d.0.downsample.2"):
        load(network, with_deep_stem(pooled=True), Inflation())


ENTRIES = [name for name in zoo.entries() if name.startswith("torchvision_")]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("101" in name or "152" in name)) for name in ENTRIES]
)
def test_each_published_resnet_arrives_from_a_file_in_its_layout(name, tmp_path, monkeypatch):
    entry = zoo.find(name)
    assert entry.network is not None
    depth = entry.network["init_args"]["depth"]
    flat, path = drawn_flat(1, depth), tmp_path / entry.path.name
    torch.save(flat.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry.sha256_prefix == path.stem.rpartition("-")[2]
    made = replace(entry, path=path, sha256_prefix=digest[:8])
    monkeypatch.setattr(zoo, "entries", lambda: {name: made})
    network, source = R3D(depth=depth, features=8), read_weights(name)
    report = load(network, source, Inflation())
    assert (report.fresh_names, report.left_over, report.notes) == (set(), [], [])
    assert report.skipped.keys() == {"fc.weight", "fc.bias"}
    assert torch.equal(network.get_buffer("layer4.0.bn2.running_var"), flat.state_dict()["layer4.0.bn2.running_var"])
    scans = Contract(modality="CT", orientation="RAS", normalization="window", range=entry.contract.range)
    assert source.contract is not None
    assert {each.key for each in differences(source.contract, scans)} == {
        *("modality", "orientation", "normalization", "window", "channels")
    }
    assert differences(source.contract, scans)[-1].forbidden  # but for Inflation, which meets it
    assert Inflation.meets == ("channels",)


def test_weights_from_pictures_expect_scans_as_pictures_lie():
    source = source_of(drawn_flat(1))
    assert as_adapted(source, [Inflation()]).contract == Contract(orientation="LPS")
    assert as_adapted(source, []).contract is None
    stated = Contract(modality="CT", orientation="RAS", classes=("liver",))
    assert Inflation().stated(stated) == stated


def test_without_a_rule_2d_kernels_are_told_what_to_do():
    with pytest.raises(ValueError, match=r"kernels are 2D: .*adapters: \[\{class_path: Inflation\}\]") as caught:
        load_weights(R3D(features=8), source_of(drawn_flat(1)))
    assert str(caught.value).count("\n") < 5


def test_what_cannot_lie_in_one_slice_or_in_the_middle_is_refused():
    kernel = torch.ones(1, 1, 3, 3, 1)
    with pytest.raises(ValueError, match="over 4 slices has no middle one: give Inflation how: mean"):
        inflated(kernel, 4, "centre")
    with pytest.raises(ValueError, match=r"conv1\.weight: how: slice takes kernels one slice thick, and this one .* 7"):
        load(R3D(features=8), source_of(drawn_flat(1)), Inflation("slice"))


INFLATED = {"centre": lambda each: inflated(each.unsqueeze(4), 3, "centre")[0]}
INFLATED["mean"] = lambda each: inflated(each.unsqueeze(4), 3, "mean")[0]


@pytest.mark.parametrize("how", INFLATED)
@pytest.mark.parametrize(("axes", "turn"), [("kji", (0, 1, 4, 2, 3)), ("jki", (0, 1, 2, 4, 3)), ("jik", None)])
def test_kernels_inflated_along_another_axis_are_refused_until_their_axes_are_told(how, axes, turn):
    flat = drawn_flat(4)
    tensors = {}
    for name, each in source_of(flat, drop="fc.").tensors.items():
        deep = (
            INFLATED[how](each)
            if each.ndim == 4 and each.shape[2] > 1
            else each.unsqueeze(4)
            if each.ndim == 4
            else each
        )
        tensors[name] = (
            deep.permute(turn).contiguous() if turn and deep.ndim == 5 else deep
        )  # from rows, columns, slices
    source = SourceWeights(tensors, None, "inflated.pth", "0" * 64)
    network = R3D(in_channels=3, features=8, stem=(7, 7, 3))
    if turn is not None:
        wrong = "i" if axes == "kji" else "j"
        with pytest.raises(ValueError, match=rf"holds 2D kernels inflated along {wrong} .*\n.*\n.*axes: {axes}"):
            load_weights(network, source, required_share=0.5)
    load(network, source, KernelAxes(axes))
    colour = picture(3)
    assert (difference(network.levels(as_volume(colour, 1)), flat.levels(colour)) < 1e-5) == (how == "centre")
