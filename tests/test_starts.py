"""Start overlays: the network takes the weights that it is written beside, and the data what these expect."""

from typing import Any

import pytest
import torch
import yaml
from flat_resnet import FlatResNet

import lightning_atlas
from lightning_atlas import Inflation
from lightning_atlas.cli import main
from lightning_atlas.cli.comparing import compare
from lightning_atlas.cli.recipes import recipes_folder
from lightning_atlas.contract import PREPROCESSED, SEEN, Contract
from lightning_atlas.data import ColoursToSlices, DrawnPictures, PictureDataModule, RandomColoursToSlices
from lightning_atlas.intake.loading import load_weights, read_weights
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.intake.zoo import build_network, entries, is_spec
from lightning_atlas.networks import P3D, R3D, PooledEncoder, SliceDetector

ALL = set(PREPROCESSED)
NOT_PUBLISHED = {
    "humpire_valid_unet": {"spacing_mm"},
    "cspr_r3d18_imagenet": {"spacing_mm"},
    "kinetics400_r3d18": {"spacing_mm"},
    "torchvision_resnet18": {"spacing_mm"},
    "medicalnet_resnet18": ALL - {"normalization"},
    "mp3d63_coco": ALL - {"orientation"},
}
"""What a start leaves to the target, because nobody has published it, or because pictures have none."""
STARTS = sorted((recipes_folder() / "start").glob("*.yaml"))
NARROW = {**dict.fromkeys(("R3D", "P3D", "SliceDetector", "ACSResNet"), "features"), "ResNetUNet": "init_filters"}
"""Networks that are as well tried with few channels, and the argument for these."""


def start(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]


def from_entry(path):
    return start(path)["weights"] in entries()


def spec(network):
    """Return a network as an entry has it, with few channels where that changes nothing."""
    name = network["class_path"].rpartition(".")[2]
    arguments = {key: spec(each) if is_spec(each) else each for key, each in network.get("init_args", {}).items()}
    few = {NARROW[name]: 8} if name in NARROW else {}
    return {"class_path": f"lightning_atlas.networks.{name}", "init_args": arguments | few}


def adapters(settings):
    return [getattr(lightning_atlas, each["class_path"])(**each["init_args"]) for each in settings.get("adapters", [])]


def as_in_the_file(tensors, rules):
    """Return tensors as flat ones where a rule is there to make them thick."""
    if not any(isinstance(each, Inflation) for each in rules):
        return dict(tensors)
    return {name: each[..., each.shape[4] // 2] if each.ndim == 5 else each for name, each in tensors.items()}


@pytest.mark.parametrize("path", STARTS, ids=lambda path: path.stem)
def test_a_start_from_weights_has_the_data_prepared_as_they_expect(path):
    settings = start(path)
    if settings["weights"] is None:
        assert "contract" not in settings
        return
    assert settings["contract"] == "adopt"
    if not from_entry(path):
        assert settings["weights"] == "CHECKPOINT"
        return
    contract = entries()[settings["weights"]].contract
    not_stated = {key for key in PREPROCESSED if not getattr(contract, key)}
    assert not_stated == NOT_PUBLISHED.get(settings["weights"], set())
    assert not any(getattr(contract, key) for key in SEEN)


OWN_NETWORK = [path for path in STARTS if from_entry(path) and "network" in start(path)]


@pytest.mark.parametrize("path", OWN_NETWORK, ids=lambda path: path.stem)
def test_the_network_of_a_start_takes_all_that_its_weights_have_of_encoder_and_decoder(path):
    settings = start(path)
    entry: Any = entries()[settings["weights"]]
    network: Any = build_network(spec(settings["network"]))
    network.resize(3)
    rules = adapters(settings)
    tensors = as_in_the_file(build_network(spec(entry.network)).state_dict(), rules)
    source = SourceWeights(tensors, entry.contract, path.stem, "")
    report = load_weights(network, source, ("liver", "own"), required_share=1.0, adapters=rules)
    fresh = ("decoder", "head") if entry.head == "none" else ("head",)
    modules = {name for stage in network.stages() if stage.part in fresh for name in stage.modules}
    assert all(name.startswith(tuple(modules)) for name in report.fresh_names)
    assert report.encoder_share == 1.0


RESIDUAL = {
    "lidc_classification": ["--model.network.features=8"],
    "lidc_segmentation": ["--model.network.backbone.features=8", "--model.network.head_features=8"],
    "bcv": ["--model.network.backbone.features=8"],
    "lits": ["--model.network.backbone.features=8"],
}
"""Targets that have an R3D-18 of their own, and what makes it narrow."""


@pytest.fixture(scope="module")
def taught_by_pictures(tmp_path_factory):
    """A checkpoint as a run of pretrain/vdt_imagenet_r3d18 leaves it, and a file of torchvision's ResNet-18; narrow."""
    folder = tmp_path_factory.mktemp("weights")
    network = PooledEncoder(R3D(depth=18, features=8), out_channels=5)
    data = PictureDataModule(DrawnPictures(train=1), evaluate=[ColoursToSlices()], augment=[RandomColoursToSlices()])
    own = {"contract": data.contract.to_dict(), "source": None, "fresh": []}
    state = {f"network.{name}": each for name, each in network.state_dict().items()}
    torch.save({"state_dict": state, "lightning_atlas": own, "global_step": 1, "epoch": 0}, folder / "last.ckpt")
    torch.save(FlatResNet(18, features=8).state_dict(), folder / "flat.pth")
    return {"vdt_weights": str(folder / "last.ckpt"), "torchvision_weights": f"torchvision_resnet18={folder}/flat.pth"}


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize("begin", ["vdt_weights", "torchvision_weights"])
def test_targets_with_a_network_of_their_own_start_from_pictures_in_it(name, begin, taught_by_pictures):
    weights = taught_by_pictures[begin]
    recipes = [recipes_folder() / "target" / f"{name}.yaml", recipes_folder() / "start" / f"{begin}.yaml"]
    asked = yaml.safe_load(recipes[0].read_text(encoding="utf-8"))["model"]["init_args"]["network"]["class_path"]
    found = compare(read_weights(weights), recipes, [f"--model.weights={weights}", *RESIDUAL[name]])
    assert found["network"] == (asked if asked != "R3D" else "PooledEncoder")
    assert found["encoder_share"] == 1.0
    assert "refused" not in found


NARROW_DETECTOR = ["--model.network.network.depth=18ba", "--model.network.network.features=8"]


def test_lesions_start_from_the_detector_that_photographs_taught(tmp_path):
    """All of it but the weights of the nine slices and the layers of the classes."""
    network = SliceDetector(P3D(depth="18ba", features=8), out_channels=80, slices=3, features=16)
    contract = Contract(classes=tuple(f"thing {n}" for n in range(80)), orientation="LPS", predicts="boxes")
    own = {"contract": contract.to_dict(), "source": None, "fresh": []}
    state = {f"network.{name}": each for name, each in network.state_dict().items()}
    torch.save({"state_dict": state, "lightning_atlas": own, "global_step": 1, "epoch": 0}, tmp_path / "last.ckpt")
    recipes = [recipes_folder() / each for each in ("target/deeplesion.yaml", "start/vdt_weights.yaml")]
    weights = str(tmp_path / "last.ckpt")
    words = [f"--model.weights={weights}", *NARROW_DETECTOR, "--model.network.features=16"]
    found = compare(read_weights(weights), recipes, words)
    assert "refused" not in found
    assert found["encoder_share"] == 1.0
    assert {each["name"].split(".")[0] for each in found["fresh"]} == {"collapse", "bbox_head"}
    last = {"bbox_head.fc_cls", "bbox_head.fc_reg"}
    assert {each["name"].rpartition(".")[0] for each in found["left_over"]} <= last


def test_weights_that_were_not_fetched_stop_the_fit_before_anything_is_prepared(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ATLAS_CACHE", str(tmp_path / "empty"))
    words = ["target/chest_ct", "start/suprem_unet", "machine/smoke", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *words]) == 2
    told = capsys.readouterr()
    assert "weights fetch suprem_unet" in told.err
    assert "prepared in" not in told.out
