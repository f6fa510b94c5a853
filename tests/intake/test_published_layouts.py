"""Each published entry, on files made in its layout: the names as published, random numbers, small networks."""

import copy
import hashlib
import re
import shutil
from argparse import Namespace
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from lightning_atlas.cli.fetching import fetch
from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.intake import zoo
from lightning_atlas.intake.loading import by_entry, load_weights, read_weights
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.networks import GenesisUNet, SegResNet, SwinUNETR, UNet

SMALL = {
    "feature_size": 12,
    "init_filters": 2,
    "features": [2, 2, 4, 4, 4, 4],
    "text_features": 8,
    "condition_features": 4,
    "decoder_features": [2, 2, 2, 2, 2],
}
"""Arguments of the published networks that make them small and change no name."""
RESULTS = Path(__file__).parent / "nnunet_results"
TORCH = {name: entry for name, entry in zoo.entries().items() if entry.path.suffix != ".h5"}  # Keras: test_keras.py
FLAT = "torchvision_"  # 2D kernels: test_two_d.py
PUBLISHED = {name: entry for name, entry in TORCH.items() if entry.url and entry.network and not name.startswith(FLAT)}


def swin_without_head(name):
    return None if name.startswith("out.") else name


def disruptive(name):
    name = re.sub(r"^swinViT\.patch_embed", "encoder.patch_embed", name)
    return swin_without_head(re.sub(r"^swinViT\.(layers\d\.0)\.", r"encoder.\1.0.", name))


def transformer_alone(name):
    inner = name.removeprefix("swinViT.").replace("mlp.linear", "mlp.fc")
    return inner if name.startswith("swinViT.") else None


def encoder_alone(name):
    return name.removeprefix("encoder.") if name.startswith("encoder.") else None


def with_flat_images(name):
    if name.startswith(("transposeconv", "stage3_de", "cls_conv")):
        return None
    return "backbone." + re.sub(r"(patch_embed|pos_embed|DecEmbed|DecPosEmbed|attn\.sr)(?=[\d.])", r"\g<1>3D", name)


def as_torchvision_writes_videos(name):
    name = re.sub(r"^conv1\.", "stem.0.", re.sub(r"^bn1\.", "stem.1.", name))
    return re.sub(r"\.bn(\d)\.", r".conv\1.1.", re.sub(r"\.conv(\d)\.", r".conv\1.0.", name))


def without_classes(name):
    return None if name.startswith(("bbox_head.fc_cls.", "bbox_head.fc_reg.")) else name


UNIMISS = [name for name in PUBLISHED if name.startswith("unimiss")]
MEDICALNET = [name for name in PUBLISHED if name.startswith("medicalnet")]
LAYOUTS = {
    **dict.fromkeys(PUBLISHED, lambda name: name),
    **dict.fromkeys(MEDICALNET, encoder_alone),
    **dict.fromkeys(UNIMISS, with_flat_images),
    "kinetics400_r3d18": as_torchvision_writes_videos,
    "mp3d63_coco": without_classes,
    "clip_driven_universal_swin_unetr": lambda name: name.removeprefix("backbone."),
    "nv_swin_unetr_50000": disruptive,
    "nv_swin_unetr_ssl": transformer_alone,
}
"""The name in the file for each of the network's; `None` where the file has none."""
MORE = {
    **{name: ["conv_seg.0.weight", "conv_seg.1.running_mean"] for name in MEDICALNET},
    **{
        name: ["head.mlp.0.weight", "backbone.transformer.pos_embed2D1", "backbone.cls_tokens0.bias"]
        for name in UNIMISS
    },
    "cspr_r3d18_imagenet": ["fc.weight"],
    "kinetics400_r3d18": ["fc.weight", "fc.bias"],
    "kinetics700_r3d18": ["fc.weight", "fc.bias"],
    "mp3d63_coco": ["bbox_head.fc_cls.weight", "bbox_head.fc_reg.bias"],
    "nv_swin_unetr_50000": ["encoder.mask_token", "encoder.norm.weight", "out.conv.conv.weight"],
    "nv_swin_unetr_ssl": ["norm.weight", "rotation_head.weight", "contrastive_head.bias", "conv.0.weight"],
}
"""What a file holds besides."""


def shrink(spec):
    spec = copy.deepcopy(spec)
    name = spec["class_path"].rpartition(".")[2]
    arguments = spec["init_args"]
    for key, each in arguments.items():
        if zoo.is_spec(each):
            arguments[key] = shrink(each)
    own = {"SwinUNETR": ["feature_size"], "GenesisUNet": ["init_filters"], "STUNet": ["features"]}
    own["DoDNet"] = ["init_filters"]
    own["ResNetUNet"] = ["init_filters", "decoder_features"]
    own["UniversalNetwork"] = ["text_features", "condition_features"]
    if name == "UniMiSS":
        arguments["features"] = [8, 16, 16, 32]
    if name in ("R3D", "P3D", "SliceDetector"):
        arguments["features"] = 8
    return spec | {"init_args": arguments | {key: SMALL[key] for key in own.get(name, [])}}


@cache
def small(name):
    """Return the entry with a small network, that network with random numbers, and a file's content in its layout."""
    entry = replace(PUBLISHED[name], network=shrink(PUBLISHED[name].network))
    network = entry.build()
    state = dict(network.state_dict())
    state |= {key: torch.randn(each.shape) for key, each in state.items() if each.is_floating_point()}
    if name == "cspr_r3d18_imagenet":  # three slices never trained these, and weight decay made them small
        state["conv1.weight"][..., [0, -1]] *= 0.08
    network.load_state_dict(state)
    named = {key: (LAYOUTS[name](key), each) for key, each in state.items()}
    axes = entry.rules.axes
    turns = {5: (0, 1, *(2 + "ijk".index(axis) for axis in axes))}
    turns |= {4: (0, 1, *(2 + "ij".index(axis) for axis in axes.replace("k", "")))}
    content = {
        theirs: each.permute(turns[each.ndim]).clone() if each.ndim in turns else each
        for theirs, each in named.values()
        if theirs is not None
    }
    missing = {key for key, (theirs, _) in named.items() if theirs is None}
    return entry, network, content | {key: torch.randn(2) for key in MORE.get(name, [])}, missing


def is_larger(name):
    """Tell whether an entry differs from another one in its size alone."""
    families = ("stu_net", "vocomni", "medicalnet", "unimiss")
    return name.startswith(families) and not name.endswith(("small", "_b", "resnet10", "resnet18", "resnet50"))


WRAPPED = [
    ("", None, torch.float32),
    ("module.", "net", torch.float32),
    ("backbone.", "state_dict", torch.float32),
    ("module.backbone.", "network_weights", torch.float16),
]


@pytest.mark.parametrize(("wrapper", "nest", "dtype"), WRAPPED)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * is_larger(name)) for name in PUBLISHED])
def test_all_tensors_of_a_published_layout_arrive(name, wrapper, nest, dtype, tmp_path, monkeypatch):
    entry, trained, content, missing = small(name)
    content = {wrapper + key: each.to(dtype) if each.is_floating_point() else each for key, each in content.items()}
    path = tmp_path / entry.path.name
    torch.save({nest: content, "epoch": 3, "optimizer": {"state": {}}} if nest else content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    made = replace(entry, path=path, sha256=digest, size_bytes=None)
    monkeypatch.setattr(zoo, "entries", lambda: {name: made})
    network = entry.build()
    fresh = copy.deepcopy(network.state_dict())
    source = read_weights(name)
    report = load_weights(network, source, entry.contract.classes, required_share=1.0)
    for key, each in network.state_dict().items():
        expected = trained.state_dict()[key]
        stored = expected.to(dtype) if expected.is_floating_point() else expected
        assert torch.equal(each, fresh[key] if key in missing else stored.to(each.dtype)), key
    assert report.fresh_names == missing
    assert report.left_over == report.notes == []
    assert sorted(report.skipped) == sorted(wrapper + key for key in MORE.get(name, []))
    assert source.contract == entry.contract
    assert (source.network, source.card["licence"]) == (entry.network, entry.licence)


@pytest.mark.parametrize(
    ("name", "network", "taken"),
    [
        ("suprem_unet", lambda: GenesisUNet(out_channels=5, init_filters=2), 104),
        ("suprem_swin_unetr", lambda: SwinUNETR(out_channels=5, feature_size=12, merging="monai_0.9"), 157),
        ("suprem_segresnet", lambda: SegResNet(out_channels=5), 81),
        ("models_genesis_chest_ct", lambda: GenesisUNet(out_channels=5, init_filters=2), 104),
    ],
)
def test_a_network_with_a_new_head_takes_as_many_tensors_as_the_published_code(name, network, taken):
    entry, _, content, _ = small(name)
    tensors = {f"module.{key}": each for key, each in content.items()}
    source = by_entry(SourceWeights(tensors, None, "some.pth", "0" * 64), entry)
    built = network()
    report = load_weights(built, source, ("a", "b", "c", "d"), required_share=1.0)
    assert len(report.loaded + report.renamed) == taken == len(built.state_dict()) - 2
    assert len(report.fresh) == 2
    assert len(report.left_over) == len(content) - taken
    assert report.fresh_outputs == ["background", "a", "b", "c", "d"]
    assert len(report.notes) == (1 if isinstance(built, GenesisUNet) else 0)


@pytest.mark.parametrize("name", ["suprem_segresnet", "nv_swin_unetr_ssl", "stu_net_small"])
def test_a_file_is_known_by_its_hash_and_may_be_read_by_an_entry_of_choice(name, tmp_path, monkeypatch):
    entry, trained, content, _ = small(name)
    path = tmp_path / "mine.pth"
    torch.save(content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = replace(entry, sha256=None, sha256_prefix=digest[:8])
    other = replace(entry, sha256="0" * 64)
    for published, given in ((known, str(path)), (other, f"{name}={path}")):
        monkeypatch.setattr(zoo, "entries", lambda published=published: {name: published})
        source = read_weights(given)
        network = entry.build()
        load_weights(network, source, entry.contract.classes, required_share=1.0)
        key = next(iter(source.tensors))
        assert torch.equal(network.state_dict()[key], trained.state_dict()[key])
        assert source.origin == f"{path} ({name})"
    monkeypatch.setattr(zoo, "entries", lambda: {name: other})
    assert read_weights(str(path)).contract is None


def test_without_a_hash_a_file_is_known_by_its_own_name(tmp_path, monkeypatch):
    entry, _, content, _ = small("stu_net_base")
    monkeypatch.setattr(zoo, "entries", lambda: {entry.name: entry})
    for file, contract in (("base_ep4k.model", entry.contract), ("another.model", None)):
        torch.save({"state_dict": content}, tmp_path / file)
        assert read_weights(str(tmp_path / file)).contract == contract


def test_what_is_published_and_not_here_is_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ATLAS_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError) as caught:
        read_weights("suprem_unet")
    told = str(caught.value)
    assert str(tmp_path / "none" / "supervised_suprem_unet_2100.pth") in told
    assert "lightning-atlas weights fetch suprem_unet" in told
    assert "(233 MB)" in told
    assert "give the path of a copy" in told


def test_what_a_page_hands_to_browsers_alone_is_told_with_the_address(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ATLAS_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"https://drive\.google\.com/file/d/.* as that file") as caught:
        read_weights("dodnet_mots")
    assert str(tmp_path / "MOTS_DynConv_checkpoint.pth") in str(caught.value)
    with pytest.raises(CommandError, match=r"dodnet_mots is handed to browsers alone: open https://drive"):
        fetch(zoo.find("dodnet_mots"))
    assert list(tmp_path.iterdir()) == []


def test_the_students_weights_are_taken_when_asked_for(tmp_path, monkeypatch):
    entry, trained, content, _ = small("unimiss_small")
    made = replace(entry, path=tmp_path / "UniMiss_small.pth")
    monkeypatch.setattr(zoo, "entries", lambda: {entry.name: made})
    teacher = {key: torch.zeros_like(each) for key, each in content.items()}
    student = {f"module.{key}": each for key, each in content.items()}
    torch.save({"student": student, "teacher": teacher, "args": Namespace(lr=1.0)}, made.path)
    for name, expected in (("unimiss_small", 0.0), ("unimiss_small#student", 1.0)):
        network = entry.build()
        report = load_weights(network, read_weights(name), (), required_share=1.0)
        own = dict(trained.named_parameters())["norm.weight"]
        torch.testing.assert_close(dict(network.named_parameters())["norm.weight"], expected * own)
        assert ("#student" in str(report)) or name.endswith("#student")


def test_another_file_under_a_published_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ATLAS_WEIGHTS", str(tmp_path))
    torch.save({"a": torch.ones(1)}, tmp_path / "supervised_suprem_unet_2100.pth")
    with pytest.raises(ValueError, match="is not the published file: its sha256 is"):
        read_weights("suprem_unet")
    torch.save({"a": torch.ones(1)}, tmp_path / "self_supervised_nv_swin_unetr_5050.pt")
    with pytest.raises(ValueError, match="expected 8dc39e51; fetch it again"):
        read_weights("nv_swin_unetr_5050")


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("suprem_segresnet", lambda: UNet(features=(4, 8))),
        ("nv_swin_unetr_5050", lambda: SegResNet(init_filters=8)),
        ("vocomni_swin_unetr_b", lambda: SwinUNETR(feature_size=12)),
        ("models_genesis_chest_ct", lambda: SwinUNETR(feature_size=12)),
        ("stu_net_small", lambda: GenesisUNet(init_filters=2)),
        ("medicalnet_resnet18", lambda: GenesisUNet(init_filters=2)),
    ],
)
def test_weights_of_another_network_are_refused_with_the_nearest_entries(name, network):
    entry = zoo.find(name)
    with zoo.without_memory():
        state = entry.build().state_dict()
    turn = (0, 1, 4, 3, 2) if entry.rules.axes == "kji" else (0, 1, 2, 3, 4)
    tensors = {f"module.{key}": each.permute(turn) if each.ndim == 5 else each for key, each in state.items()}
    with pytest.raises(ValueError, match=r"fills \d+\.\d% of the encoder") as caught:
        load_weights(network(), SourceWeights(tensors, None, "some.pth", "0" * 64))
    told = str(caught.value)
    assert f"It looks like {name} ({len(tensors)} of {len(tensors)} tensors)" in told
    assert f"{{class_path: {entry.network['class_path'].rpartition('.')[2]}" in told  # pyright: ignore[reportOptionalSubscript]
    assert len(told.splitlines()) <= 5
    assert max(map(len, told.splitlines())) < 400


def test_a_fetched_folder_of_results_is_read_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ATLAS_WEIGHTS", str(tmp_path))
    entry = zoo.find("totalsegmentator_body")
    assert not entry.path.exists()
    shutil.copytree(RESULTS, entry.path / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    source, own = read_weights("totalsegmentator_body"), read_weights(str(RESULTS))
    assert source.tensors.keys() == own.tensors.keys()
    assert source.network == own.network
    assert source.card["licence"] == entry.licence
    assert source.contract is not None
    assert own.contract is not None
    assert source.contract == replace(own.contract, orientation=own.contract.orientation or "RAS")
    assert read_weights(str(entry.path)).contract == own.contract
    shutil.copytree(RESULTS, entry.path / "another")
    with pytest.raises(ValueError, match=r"holds several folders of results; name one: .*another"):
        read_weights("totalsegmentator_body")


COUNTS = {
    "suprem_unet": (117, 19_416_417),
    "suprem_swin_unetr": (170, 62_595_315),
    "suprem_segresnet": (83, 4_701_424),
    "models_genesis_chest_ct": (106, 19_073_665),
    "nv_swin_unetr_5050": (159, 62_187_296),
    "stu_net_small": (130, 14_600_000),
    "stu_net_base": (130, 58_260_000),
    "stu_net_large": (None, 440_300_000),
    "stu_net_huge": (None, 1_457_330_000),
    "vocomni_swin_unetr_b": (None, 72_800_000),
    "humpire_valid_unet": (30, 16_317_015),
    "cspr_r3d18_imagenet": (120, 33_160_000),
    "kinetics400_r3d18": (120, 33_371_472 - 513 * 400),
}
"""Tensors and parameters as published; those of STU-Net and VoCo rounded."""


@pytest.mark.parametrize("name", COUNTS)
def test_the_networks_have_as_many_tensors_and_parameters_as_published(name):
    with zoo.without_memory():
        network = zoo.find(name).build()
    tensors, parameters = COUNTS[name]
    rounded = parameters % 1000 == 0
    assert sum(each.numel() for each in network.parameters()) == pytest.approx(parameters, rel=0.01 if rounded else 0)
    assert tensors in (None, len(network.state_dict()))
