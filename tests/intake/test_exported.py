"""An export is read back as it was written, is refused when damaged, and is read by every later version."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.intake.exported import (
    build,
    check_network,
    check_transforms,
    is_export,
    public_spec,
    read_export,
    write_export,
)
from lightning_atlas.intake.loading import load_weights, read_weights
from lightning_atlas.networks import UNet

FORMATS = Path(__file__).parent / "formats"
SPEC = {"class_path": "lightning_atlas.networks.UNet", "init_args": {"out_channels": 3, "features": [4, 8]}}
CONTRACT = Contract(classes=("liver", "spleen"), modality="CT", window=(-175.0, 250.0))
FACTS: dict = dict.fromkeys(
    ("task", "preprocessing", "training", "metrics", "environment", "licence", "citation", "source")
)


@pytest.fixture
def network():
    return UNet(out_channels=3, features=(4, 8))


@pytest.fixture
def folder(network, tmp_path):
    write_export(tmp_path / "mine", network, CONTRACT, SPEC, FACTS)
    return tmp_path / "mine"


def test_what_is_written_is_read_back(network, folder):
    source = read_weights(str(folder))
    assert source.contract == CONTRACT
    assert source.network == SPEC
    assert source.tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(source.tensors[name], tensor) for name, tensor in network.state_dict().items())
    assert {path.name for path in folder.iterdir()} == {"weights.safetensors", "atlas.json", "README.md"}


def test_half_precision_halves_the_file_and_hardly_changes_the_logits(network, folder, tmp_path):
    write_export(tmp_path / "half", network, CONTRACT, SPEC, FACTS, half=True)
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("half", "mine")]
    header = 4000  # of names and shapes, which do not shrink
    assert sizes[0] - header < sizes[1] / 2
    source, image = read_export(tmp_path / "half"), torch.rand(1, 1, 16, 16, 16)
    built = build(source.network or {})
    load_weights(built, source, CONTRACT.classes, required_share=1.0)
    with torch.no_grad():
        exact, rounded = network(image), built(image)
    assert 0 < (exact - rounded).abs().max() < 0.01 * exact.std()


def damage_card(folder, **changes):
    path = folder / "atlas.json"
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: each for key, each in values.items() if each != "gone"}), encoding="utf-8")


def flip_a_bit(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "no card": (lambda folder: (folder / "atlas.json").unlink(), "atlas.json is missing"),
    "no tensors": (lambda folder: (folder / "weights.safetensors").unlink(), "weights.safetensors is missing"),
    "other tensors": (flip_a_bit, "is not the file that atlas.json describes"),
    "half a card": (lambda folder: (folder / "atlas.json").write_text('{"format": 1,', encoding="utf-8"), "damaged"),
    "a key is gone": (lambda folder: damage_card(folder, contract="gone"), "lacks contract"),
    "a newer format": (lambda folder: damage_card(folder, format=2), "has format 2, and this version"),
    "a contract of no format": (lambda folder: damage_card(folder, contract={"colour": 1}), "its contract cannot be"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_plain_words(folder, damage):
    make, told = DAMAGES[damage]
    make(folder)
    assert is_export(folder)
    with pytest.raises(ValueError, match=told):
        read_weights(str(folder))


def test_only_an_export_is_replaced_and_only_when_asked(network, folder):
    with pytest.raises(ValueError, match="say --overwrite"):
        write_export(folder, network, CONTRACT, SPEC, FACTS)
    (folder / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"files of no export \(thesis.txt\)"):
        write_export(folder, network, CONTRACT, SPEC, FACTS, overwrite=True)
    (folder / "thesis.txt").unlink()
    other = UNet(out_channels=3, features=(4, 8))
    write_export(folder, other, CONTRACT, SPEC, FACTS, overwrite=True)
    assert torch.equal(read_export(folder).tensors["head.weight"], other.head.weight)


@pytest.mark.parametrize("there", [True, False])
def test_an_interrupt_leaves_things_as_they_were(network, folder, monkeypatch, there):
    before = read_export(folder).sha256
    if not there:
        shutil.rmtree(folder)

    def interrupted(values):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_atlas.intake.exported.model_card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_export(folder, UNet(out_channels=3, features=(4, 8)), CONTRACT, SPEC, FACTS, overwrite=True)
    assert [path.name for path in folder.parent.iterdir()] == (["mine"] if there else [])
    assert not there or read_export(folder).sha256 == before


def test_the_network_of_an_export_is_of_this_library_or_of_monai():
    own = {"class_path": "lightning_atlas.UNet", "init_args": {"features": [4, 8]}}
    assert public_spec(own)["class_path"] == "lightning_atlas.networks.UNet"
    monai = {"class_path": "monai.networks.nets.BasicUNet", "init_args": {"features": [4, 4, 4, 4, 4, 4]}}
    parts = {"encoder": ["conv_0", "down_1", "down_2", "down_3", "down_4"], "head": ["final_conv"]}
    parts["decoder"] = ["upcat_4", "upcat_3", "upcat_2", "upcat_1"]
    wrapped = {"class_path": "lightning_atlas.networks.as_network", "init_args": {"network": monai, **parts}}
    assert build(wrapped, outputs=7)(torch.rand(1, 1, 32, 32, 32)).shape[1] == 7
    for name in ("os.system", "monai.bundle.ConfigParser", "torch.nn.Conv3d"):
        for spec in ({"class_path": name}, wrapped | {"init_args": {"network": {"class_path": name}, **parts}}):
            with pytest.raises(ValueError, match="other code is not run"):
                check_network(spec)
    with pytest.raises(ValueError, match="does not take these arguments"):
        build({"class_path": "lightning_atlas.networks.UNet", "init_args": {"width": 3}})


def test_transforms_of_an_export_bring_no_code():
    fine = [{"class_path": "torchio.Resample", "init_args": {"target": [1.5, 1.5, 3], "image_interpolation": "linear"}}]
    check_transforms(fine)
    check_transforms(None)
    for name in ("torchio.Lambda", "os.system", "subprocess.Popen"):
        with pytest.raises(ValueError, match="other code is not run"):
            check_transforms([{"class_path": name}])
    with pytest.raises(ValueError, match="could name code or a file"):
        check_transforms([{"class_path": "torchio.RescaleIntensity", "init_args": {"masking_method": "os.system"}}])


# One folder of each format that was ever written, for ever: never write these again, add the next number.


def wave():
    """Return intensities of a scan that a formula makes, in Hounsfield units."""
    i, j, k = torch.meshgrid(*(torch.arange(side) for side in (24, 20, 16)), indexing="ij")
    return (300 * torch.sin(i / 4) * torch.cos(j / 5) + 150 * torch.sin(k / 3) - 50).round()


@pytest.mark.parametrize("number", [1])
def test_a_folder_of_every_format_loads_and_predicts_the_same(number):
    expected = json.loads((FORMATS / f"{number}.json").read_text(encoding="utf-8"))
    source = read_weights(str(FORMATS / str(number)))
    assert source.contract
    assert source.contract.window
    assert source.contract.classes == ("liver", "spleen")
    network = build(source.network or {}).eval()
    report = load_weights(network, source, source.contract.classes, required_share=1.0)
    assert report.fresh_names == set()
    window, (low, high) = SlidingWindow(patch=(16, 16, 16), overlap=0.25), source.contract.window
    with torch.no_grad():
        logits = window(network, ((wave().clamp(low, high) - low) / (high - low))[None, None])[0]
    for (i, j, k), values in zip(expected["places"], expected["logits"], strict=True):
        assert torch.allclose(logits[:, i, j, k], torch.tensor(values), atol=1e-3)
    counts = logits.argmax(0).flatten().bincount(minlength=3).tolist()
    assert counts == pytest.approx(list(expected["voxels"].values()), abs=8)
