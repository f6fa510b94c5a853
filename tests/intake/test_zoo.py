import json
import re
from pathlib import Path

import pytest
import torch

from lightning_atlas.contract import Contract
from lightning_atlas.intake import zoo
from lightning_atlas.intake.loading import load_weights, read_weights
from lightning_atlas.networks import UNet

SPEC = {"class_path": "lightning_atlas.networks.UNet", "init_args": {"out_channels": 3, "features": [4, 8]}}
CARD = {"licence": "Apache-2.0", "origin": "a test", "card": "Nothing é."}
CONTRACT = Contract(classes=("liver", "spleen"), modality="CT", window=(-175.0, 250.0))


@pytest.fixture
def network():
    return UNet(out_channels=3, features=(4, 8))


@pytest.mark.parametrize("name", [name for name, entry in zoo.entries().items() if entry.url is None])
def test_each_shipped_entry_loads_in_full(name):
    entry = zoo.find(name)
    assert entry.size_bytes == entry.path.stat().st_size <= 5e6
    source, built = read_weights(name), entry.build()
    assert source.sha256 == entry.sha256
    assert source.contract == entry.contract
    assert entry.contract.classes
    report = load_weights(built, source, entry.contract.classes, required_share=1.0)
    assert report.fresh_names == set()
    assert report.left_over == report.reshaped == []
    assert all(len(text) > 3 for text in (entry.licence, entry.origin, entry.card))


def test_what_is_written_is_found_and_loads(network, tmp_path, monkeypatch):
    written = zoo.write_entry(tmp_path / "new", "toy_ct", network, CONTRACT, SPEC, CARD)
    monkeypatch.setattr(zoo, "entries", lambda: {"toy_ct": written})
    assert written.contract == CONTRACT
    source, built = read_weights("toy_ct"), written.build()
    load_weights(built, source, CONTRACT.classes, required_share=1.0)
    for name, tensor in network.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor.half().to(tensor.dtype)), name


def test_entries_are_read_back_by_name(network, tmp_path):
    written = zoo.write_entry(tmp_path, "toy_ct", network, CONTRACT, SPEC, CARD)
    assert zoo.entries(tmp_path) == {"toy_ct": written}
    assert zoo.find("toy_ct", tmp_path) == written
    with pytest.raises(ValueError, match="no weights are published as 'toy_mr'; nearest: toy_ct"):
        zoo.find("toy_mr", tmp_path)


def test_a_changed_file_is_refused_with_both_hashes(network, tmp_path, monkeypatch):
    written = zoo.write_entry(tmp_path, "toy_ct", network, CONTRACT, SPEC, CARD)
    monkeypatch.setattr(zoo, "entries", lambda: {"toy_ct": written})
    content = bytearray(written.path.read_bytes())
    content[-1] ^= 1
    written.path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=rf"its sha256 is [0-9a-f]{{64}}, expected {written.sha256}"):
        read_weights("toy_ct")


def test_a_path_is_a_file_a_name_is_published_and_near_ones_are_told(network, tmp_path, monkeypatch):
    written = zoo.write_entry(tmp_path, "toy_ct", network, CONTRACT, SPEC, CARD)
    monkeypatch.setattr(zoo, "entries", lambda: {"toy_ct": written})
    with pytest.raises(FileNotFoundError, match="Nearest published: toy_ct"):
        read_weights("toy_tc.pt")
    torch.save({"a": torch.ones(1)}, "toy_ct.pt")
    assert read_weights("toy_ct.pt").tensors.keys() == {"a"}
    assert read_weights("toy_ct").sha256 == written.sha256


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "Toy CT"}, "is no name for weights"),
        ({"card": {"licence": "MIT"}}, "has the texts licence, origin and card, and found licence"),
        ({"spec": {"class_path": "os.system", "init_args": {}}}, "and found os.system"),
        ({"spec": {"class_path": "UNet", "init_args": {}}}, "and found UNet"),
        ({"spec": {"class_path": "lightning_atlas.networks.as_network", "init_args": {}}}, "found .*as_network"),
        ({"spec": SPEC | {"init_args": {"out_channels": 3, "features": [4, 9]}}}, "is another network: .* differs"),
    ],
)
def test_an_entry_that_could_not_be_used_is_not_written(change, told, network, tmp_path):
    arguments = {"name": "toy", "network": network, "contract": CONTRACT, "spec": SPEC, "card": CARD} | change
    with pytest.raises(ValueError, match=told):
        zoo.write_entry(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_entry_with_a_wrong_key_is_named(network, tmp_path):
    written = zoo.write_entry(tmp_path, "toy_ct", network, CONTRACT, SPEC, CARD)
    path = written.path.with_suffix(".json")
    values = json.loads(path.read_text(encoding="utf-8"))
    values["license"] = values.pop("licence")
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match=r"toy_ct\.json: .*missing or unknown: licence, license"):
        zoo.entries(tmp_path)


@pytest.mark.parametrize("name", zoo.entries())
def test_each_entry_says_what_it_is_or_that_it_is_not_known(name):
    entry = zoo.find(name)
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert re.fullmatch("|[0-9a-f]{8}", entry.sha256_prefix)
    assert entry.size_bytes is None or entry.size_bytes > 10**6
    if entry.url:
        assert entry.url.startswith("https://")
        file = entry.path.name if entry.by_browser else entry.url.rpartition("/")[2]
        assert file in (entry.path.name, f"{entry.path.name}.zip")
        assert entry.citation
        assert entry.sources
        assert entry.doubts
    outputs = zoo.settings(entry.network or {}).get("out_channels")
    if entry.head == "none" or entry.network is None:
        assert entry.contract.classes == ()
    else:
        assert outputs == len(entry.contract.classes) + (entry.head == "softmax")
    assert entry.contract.overlapping == (entry.head == "sigmoid")


@pytest.mark.parametrize("name", [name for name, entry in zoo.entries().items() if entry.network])
def test_each_network_is_one_of_this_library(name):
    with zoo.without_memory():
        network = zoo.find(name).build()
    told = zoo.settings(zoo.find(name).network or {})
    assert {key: str(told[key]).lower() for key in network.conventions()} == network.conventions()


def test_an_entry_of_results_names_no_network_before_it_is_here():
    with pytest.raises(ValueError, match="totalsegmentator_ribs: the network stands in the plans"):
        zoo.find("totalsegmentator_ribs").build()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"LIGHTNING_ATLAS_WEIGHTS": "/w", "LIGHTNING_ATLAS_CACHE": "/c"}, "/w"),
        ({"LIGHTNING_ATLAS_CACHE": "/c"}, "/c/weights"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/lightning_atlas/weights"),
        ({}, "/home/somebody/.cache/lightning_atlas/weights"),
    ],
)
def test_fetched_weights_lie_where_the_environment_says(settings, expected, monkeypatch):
    monkeypatch.setattr(zoo.sys, "platform", "linux")
    monkeypatch.setattr(zoo.Path, "home", lambda: Path("/home/somebody"))
    for key in ("LIGHTNING_ATLAS_WEIGHTS", "LIGHTNING_ATLAS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(key, raising=False)
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    assert zoo.weights_root() == Path(expected)
