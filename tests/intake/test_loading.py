import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_atlas.contract import Contract
from lightning_atlas.intake.adapters import InputChannels
from lightning_atlas.intake.loading import load_weights, read_weights
from lightning_atlas.intake.weights import SourceWeights, write_weights
from lightning_atlas.networks import GenesisUNet, NnUNet, SegResNet, UNet, UniversalNetwork

PREFIXES = [
    "",
    "module.",
    "backbone.",
    "module.backbone.",
    "network.",
    "model._orig_mod.",
    "encoder.",
    "module.module.",
]


def source_of(tensors, classes=None):
    return SourceWeights(dict(tensors), None if classes is None else Contract(classes=classes), "some.pt", "0" * 64)


def assert_adds_up(report, network, source):
    taken = [(name, name) for name in report.loaded] + report.renamed
    taken += [(each.source, each.name) for each in report.reshaped]
    ours = [name for _, name in taken] + [each.name for each in report.fresh]
    theirs = [name for name, _ in taken] + [each.name for each in report.left_over]
    assert sorted(ours) == sorted(network.state_dict())
    assert sorted(theirs) == sorted(source.tensors)


def unchanged(network, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_tensor_arrives_under_each_prefix_and_precision(prefix, dtype, make_toy):
    trained, network = make_toy(1), make_toy(2)
    tensors = {key: each.to(dtype) if each.is_floating_point() else each for key, each in trained.state_dict().items()}
    source = source_of({prefix + key: each for key, each in tensors.items()})
    report = load_weights(network, source)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, tensors[name].to(tensor.dtype)), name
        assert tensor.dtype == trained.state_dict()[name].dtype
    assert len(report.renamed if prefix else report.loaded) == len(tensors)
    assert (report.prefix, report.fresh_names, report.left_over) == (prefix, set(), [])
    assert report.encoder_share == 1.0
    assert_adds_up(report, network, source)


@pytest.mark.parametrize("nest", ["state_dict", "net", "network_weights"])
@pytest.mark.parametrize("build", [UNet, SegResNet])
def test_a_published_layout_arrives_in_full(nest, build, tmp_path):
    trained, network = build(out_channels=4), build(out_channels=4)
    tensors = {f"module.backbone.{key}": each for key, each in trained.state_dict().items()}
    torch.save({nest: tensors | {"module.controller.weight": torch.ones(3)}, "epoch": 1}, tmp_path / "a.pth")
    report = load_weights(network, read_weights(str(tmp_path / "a.pth")))
    assert unchanged(network, trained.state_dict())
    assert [each.name for each in report.left_over] == ["module.controller.weight"]


def test_a_known_word_inside_a_name_is_no_prefix(make_toy):
    network = make_toy(2)
    tensors = {key.replace("encoder.", "encoder.module."): each for key, each in make_toy(1).state_dict().items()}
    with pytest.raises(ValueError, match=r"fills 0\.0% of the encoder"):
        load_weights(network, source_of(tensors))


def test_an_encoder_alone_loads_and_the_rest_is_fresh(make_toy):
    network, before = make_toy(2), copy.deepcopy(make_toy(2).state_dict())
    tensors = {key: each for key, each in make_toy(1).state_dict().items() if key.startswith("encoder.")}
    source = source_of(tensors)
    report = load_weights(network, source)
    state = network.state_dict()
    assert report.fresh_names == state.keys() - tensors.keys()
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)
    assert all(torch.equal(state[name], before[name]) for name in report.fresh_names)
    assert_adds_up(report, network, source)


def test_another_shape_is_fresh_and_left_over_with_both_shapes(make_toy):
    network, tensors = make_toy(2), dict(make_toy(1).state_dict())
    tensors["decoder.0.0.weight"] = torch.ones(4, 8, 1, 1, 1)
    source = source_of(tensors)
    report = load_weights(network, source)
    assert [str(each) for each in report.fresh] == ["decoder.0.0.weight 4x8x3x3x3 (there 4x8x1x1x1)"]
    assert [str(each) for each in report.left_over] == ["decoder.0.0.weight 4x8x1x1x1 (there 4x8x3x3x3)"]
    assert_adds_up(report, network, source)


@pytest.mark.parametrize("wrong", ["other names", "other width", "nothing known"])
def test_weights_of_another_network_are_refused_and_nothing_changes(wrong, make_toy):
    network, other = make_toy(2), make_toy(1, width=6)
    tensors = {
        "other names": {f"x{key}": each for key, each in make_toy(1).state_dict().items()},
        "other width": other.state_dict(),
        "nothing known": {"a": torch.ones(1)},
    }[wrong]
    with pytest.raises(
        ValueError, match=r"some\.pt fills 0\.0% of the encoder of Toy, and 90\.0% are required"
    ) as caught:
        load_weights(network, source_of(tensors))
    assert unchanged(network, make_toy(2).state_dict())
    told = str(caught.value)
    assert "(fresh encoder.0.0.weight 4x1x3x3x3" in told
    assert next(iter(tensors)) in told.split("left over ")[1]
    assert len(told) < 900


def test_the_share_counts_numbers_of_the_encoder_and_is_compared_with_what_is_required(make_toy):
    network, tensors = make_toy(2), dict(make_toy(1).state_dict())
    missing = tensors.pop("encoder.1.0.weight").numel()
    total = sum(each.numel() for name, each in network.named_parameters() if name.startswith("encoder."))
    share = 1 - missing / total
    with pytest.raises(ValueError, match="are required"):
        load_weights(network, source_of(tensors), required_share=share + 1e-6)
    assert load_weights(network, source_of(tensors), required_share=share - 1e-6).encoder_share == pytest.approx(share)
    with pytest.raises(ValueError, match="required_share is 90"):
        load_weights(network, source_of(tensors), required_share=90.0)


def test_a_file_that_fits_nothing_is_refused_whatever_share_is_required(make_toy):
    with pytest.raises(ValueError, match=r"fills 0\.0%"):
        load_weights(make_toy(2), source_of({"a": torch.ones(1)}), required_share=0.0)


def test_outputs_of_the_head_go_by_the_names_of_their_classes(make_toy):
    trained, network = make_toy(1, outputs=5), make_toy(2, outputs=4)
    before = copy.deepcopy(network.state_dict())
    source = source_of(trained.state_dict(), ("spleen", "kidney", "liver", "colon"))
    report = load_weights(network, source, ("liver", "eye", "spleen"))
    for tensor, fresh, old in (
        (network.head.weight, before["head.weight"], trained.head.weight),
        (network.head.bias, before["head.bias"], trained.head.bias),
    ):
        assert torch.equal(tensor, torch.stack([old[0], old[3], fresh[2], old[1]]))
    assert report.fresh_names == {"head.weight", "head.bias"}
    assert report.reshaped[0].how == "5 -> 4 outputs: background, liver, spleen taken by name; fresh: eye"
    assert_adds_up(report, network, source)


def test_a_head_of_the_same_size_and_other_classes_goes_by_name_too(make_toy):
    trained, network = make_toy(1), make_toy(2)
    report = load_weights(network, source_of(trained.state_dict(), ("liver", "spleen")), ("spleen", "liver"))
    assert torch.equal(network.head.weight, trained.head.weight[[0, 2, 1]])
    assert report.fresh_names == set()
    assert len(report.reshaped) == 2


@pytest.mark.parametrize(
    ("theirs", "ours"), [(("liver", "spleen"), ("liver", "spleen")), (None, ("eye", "nose")), ((), ())]
)
def test_a_head_whose_classes_are_the_same_or_not_known_is_taken_whole(theirs, ours, make_toy):
    trained, network = make_toy(1), make_toy(2)
    report = load_weights(network, source_of(trained.state_dict(), theirs), ours)
    assert torch.equal(network.head.weight, trained.head.weight)
    assert report.reshaped == []


@pytest.mark.parametrize("theirs", [None, ("liver",), ("a", "b", "c", "d", "e")])
def test_a_head_whose_outputs_cannot_be_named_stays_fresh(theirs, make_toy):
    network = make_toy(2, outputs=4)
    source = source_of(make_toy(1, outputs=5).state_dict(), theirs)
    report = load_weights(network, source, ("liver", "eye", "spleen"))
    assert torch.equal(network.head.weight, make_toy(2, outputs=4).head.weight)
    assert report.fresh_names == {"head.weight", "head.bias"}
    assert_adds_up(report, network, source)


def test_a_head_of_the_same_size_whose_outputs_cannot_be_named_is_not_taken_by_position(make_toy):
    network = make_toy(2)
    source = source_of(make_toy(1).state_dict(), ("liver", "spleen", "eye", "ear"))
    report = load_weights(network, source, ("eye", "nose"))
    assert torch.equal(network.head.weight, make_toy(2).head.weight)
    assert report.fresh_outputs == ["background", "eye", "nose"]
    assert report.fresh_names == {"head.weight", "head.bias"}


@pytest.mark.parametrize("theirs", [("spleen", "liver"), ("liver", "spleen"), None])
@pytest.mark.parametrize("ours", [("liver", "spleen"), ()])
def test_a_fresh_head_takes_nothing_of_classes_that_both_have(theirs, ours, make_toy):
    trained, network = make_toy(1), make_toy(2)
    source = source_of(trained.state_dict(), theirs)
    report = load_weights(network, source, ours, head="fresh")
    assert torch.equal(network.head.weight, make_toy(2).head.weight)
    assert torch.equal(network.head.bias, make_toy(2).head.bias)
    assert {each.name for each in report.fresh} == {"head.weight", "head.bias"} == report.fresh_names
    assert {each.name for each in report.left_over} == {"head.weight", "head.bias"}
    assert report.fresh_outputs == (["background", *ours] if ours else [])
    assert "fresh      head.weight" in str(report)
    assert_adds_up(report, network, source)


def test_a_transposed_convolution_has_its_outputs_on_the_other_axis(make_toy):
    trained, network = make_toy(1), make_toy(2)
    trained.head, network.head = nn.ConvTranspose3d(4, 4, 2), nn.ConvTranspose3d(4, 3, 2)
    fresh = network.head.weight.detach().clone()
    source = source_of(trained.state_dict(), ("liver", "spleen", "eye"))
    load_weights(network, source, ("eye", "nose"))
    assert torch.equal(network.head.weight[:, :2], source.tensors["head.weight"][:, [0, 3]])
    assert torch.equal(network.head.weight[:, 2], fresh[:, 2])
    assert torch.equal(network.state_dict()["head.bias"][:2], source.tensors["head.bias"][[0, 3]])


def test_a_tensor_with_two_names_takes_its_outputs_by_name_under_both(make_toy):
    trained, network = make_toy(1), make_toy(2)
    trained.again, network.again = trained.head, network.head
    source = source_of(trained.state_dict(), ("liver", "spleen"))
    report = load_weights(network, source, ("spleen", "liver"))
    assert torch.equal(network.head.weight, trained.head.weight[[0, 2, 1]])
    assert sorted(each.name for each in report.reshaped) == ["again.bias", "again.weight", "head.bias", "head.weight"]
    assert_adds_up(report, network, source)


def test_gradients_and_optimizers_still_hold_the_same_parameters(make_toy):
    network = make_toy(2)
    before = [id(each) for each in network.parameters()]
    load_weights(network, source_of(make_toy(1).state_dict()))
    assert [id(each) for each in network.parameters()] == before
    assert all(each.requires_grad and each.is_leaf for each in network.parameters())


def test_the_report_is_short_ascii_and_counts_right(make_toy):
    tensors = {f"module.{key}": each for key, each in make_toy(1, outputs=5).state_dict().items()}
    tensors |= {f"module.extra.{number}": torch.ones(2) for number in range(20)}
    source = source_of(tensors, ("spleen", "kidney", "liver", "colon"))
    text = str(load_weights(make_toy(2, outputs=4), source, ("liver", "eye", "spleen")))
    assert text.isascii()
    assert "0 loaded, 28 renamed, 2 reshaped, 0 fresh (new, as initialised), 20 left over (in the file" in text
    assert "100.0% of the encoder" in text
    assert "'module.' dropped: module.encoder.0.0.weight -> encoder.0.0.weight and 27 more" in text
    assert "head.bias 5 -> 4 outputs: background, liver, spleen taken by name; fresh: eye" in text
    assert "module.extra.7 2\n" in text
    assert "and 12 more" in text
    assert len(text.splitlines()) < 15


def test_what_one_run_wrote_another_reads(make_toy, tmp_path):
    trained, network = make_toy(1), make_toy(2)
    contract = Contract(classes=("liver", "spleen"), modality="CT")
    write_weights(tmp_path / "a.safetensors", trained, contract, {})
    source = read_weights(str(tmp_path / "a.safetensors"))
    load_weights(network, source, contract.classes, required_share=1.0)
    assert source.contract == contract
    assert unchanged(network, trained.state_dict())


def test_a_name_that_is_nothing_is_answered_with_what_is_near(tmp_path):
    (tmp_path / "mine_last.ckpt").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"mine_lst\.ckpt is neither a file, a .*files in .*: .*mine_last\.ckpt$"
    ):
        read_weights(str(tmp_path / "mine_lst.ckpt"))
    with pytest.raises(ValueError, match=r"is neither an export .* nor a folder of results.*mine_last\.ckpt$"):
        read_weights(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"nearest files in .*: none"):
        read_weights(str(tmp_path / "no" / "such" / "folder.pt"))


@pytest.mark.parametrize(("theirs", "ours", "kinds"), [(2, 4, "sigmoid -> softmax"), (3, 3, "softmax -> sigmoid")])
def test_rows_go_by_name_between_a_sigmoid_and_a_softmax_head(theirs, ours, kinds, make_toy):
    trained, network = make_toy(1, outputs=theirs), make_toy(2, outputs=ours)
    before = copy.deepcopy(network.state_dict())
    source = source_of(trained.state_dict(), ("liver", "spleen"))
    report = load_weights(network, source, ("spleen", "eye", "liver"))
    rows = {"sigmoid -> softmax": [None, 1, None, 0], "softmax -> sigmoid": [2, None, 1]}[kinds]
    for row, their_row in enumerate(rows):
        taken = before["head.weight"][row] if their_row is None else trained.head.weight[their_row]
        assert torch.equal(network.head.weight[row], taken)
    assert f"({kinds})" in report.reshaped[0].how
    assert report.fresh_outputs == (["background", "eye"] if theirs == 2 else ["eye"])
    assert_adds_up(report, network, source)


def test_several_channels_start_from_one_only_when_asked(make_toy):
    trained, network = make_toy(1), make_toy(2)
    network.encoder[0][0] = nn.Conv3d(3, 4, 3, padding=1)
    source = source_of(trained.state_dict())
    report = load_weights(copy.deepcopy(network), source, required_share=0.5)
    assert [each.name for each in report.fresh] == ["encoder.0.0.weight"]
    report = load_weights(network, source, adapters=[InputChannels()])
    image = torch.randn(2, 1, 8, 8, 8)
    result = network.eval()(image.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(result, trained.eval()(image), rtol=1e-3, atol=0.0)
    assert report.fresh_names == set()
    assert report.reshaped[0].how == "1 -> 3 input channels: repeated, and divided by 3"
    assert_adds_up(report, network, source)


def test_a_source_that_fills_a_part_is_measured_by_that_part(make_toy):
    tensors = {key: each for key, each in make_toy(1).state_dict().items() if key.startswith("encoder.0.")}
    with pytest.raises(ValueError, match="are required"):
        load_weights(make_toy(2), source_of(tensors))
    part = replace(source_of(tensors), fills=("encoder.0.",), skipped={"old": "of another task"})
    report = load_weights(make_toy(2), part, required_share=1.0)
    assert 0.0 < report.encoder_share < 0.5
    assert "skipped    old: of another task" in str(report)
    with pytest.raises(ValueError, match=r"fills 0\.0% of encoder\.1\. in the encoder of Toy"):
        load_weights(make_toy(2), replace(part, fills=("encoder.1.",)))


def test_what_no_shape_shows_is_noted():
    trained = GenesisUNet(init_filters=2)
    spec = {"class_path": "lightning_atlas.networks.GenesisUNet", "init_args": {"batch_statistics": True}}
    source = replace(source_of(trained.state_dict()), network=spec)
    report = load_weights(GenesisUNet(init_filters=2), source)
    assert "batch_statistics: true, and the network has false" in report.notes[0]
    assert report.notes[0] in str(report)
    assert load_weights(GenesisUNet(init_filters=2, batch_statistics=True), source).notes == []


def test_weights_go_into_the_network_that_another_holds():
    trained, network = GenesisUNet(init_filters=2), UniversalNetwork(GenesisUNet(init_filters=2), out_channels=3)
    source = source_of({f"module.{key}": each for key, each in trained.state_dict().items()})
    report = load_weights(network, source)
    assert (report.prefix, report.added) == ("module.", "backbone.")
    weight = network.backbone.get_parameter("down_tr64.ops.0.conv1.weight")
    assert torch.equal(weight, source.tensors["module.down_tr64.ops.0.conv1.weight"])
    assert [each.name for each in report.left_over] == [
        "module.out_tr.final_conv.weight",
        "module.out_tr.final_conv.bias",
    ]
    assert "'module.' dropped, 'backbone.' added" in str(report)


def test_the_rows_of_a_text_head_go_by_name():
    trained = UniversalNetwork(GenesisUNet(init_filters=2), out_channels=3)
    network = UniversalNetwork(GenesisUNet(init_filters=2), out_channels=2)
    fresh = network.organ_embedding.clone()
    report = load_weights(network, source_of(trained.state_dict(), ("a", "b", "c")), ("c", "d"))
    assert torch.equal(network.organ_embedding, torch.stack([trained.organ_embedding[2], fresh[1]]))
    assert report.fresh_names == {"organ_embedding"}
    assert report.fresh_outputs == ["d"]


def test_a_tensor_of_several_names_is_written_once_and_fills_them_all(tmp_path):
    network = NnUNet(features=(4, 6), kernel_sizes=(3, 3), strides=(1, 2), depths=(1, 1, 1))
    path = tmp_path / "nnunet.safetensors"
    write_weights(path, network, Contract(), {})
    names = list(network.state_dict())
    assert len(read_weights(str(path)).tensors) == len({*dict(network.named_parameters())}) < len(names)
    other = NnUNet(features=(4, 6), kernel_sizes=(3, 3), strides=(1, 2), depths=(1, 1, 1))
    report = load_weights(other, read_weights(str(path)))
    assert not report.fresh
    assert not report.left_over
    assert all(torch.equal(each, other.state_dict()[name]) for name, each in network.state_dict().items())
