import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightning_atlas.contract import Contract
from lightning_atlas.intake.weights import read_card, read_file, write_weights

CONTRACT = Contract(classes=("liver", "spleen"), modality="CT", spacing_mm=(3.0, 3.0, 3.0), window=(-175.0, 250.0))
NESTS = [
    *((), ("state_dict",), ("net",), ("network_weights",), ("model",), ("model_state_dict",), ("teacher",)),
    *(("student",), ("model", "state_dict")),
]


class Malicious:
    """Reading it back creates a file."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("half", [False, True])
def test_what_was_written_is_read(half, make_toy, tmp_path):
    network, path = make_toy(0), tmp_path / "a b é.safetensors"
    write_weights(path, network, CONTRACT, {"text": "é: a toy"}, half)
    source = read_file(path)
    expected = {k: v.half() if half and v.is_floating_point() else v for k, v in network.state_dict().items()}
    assert equal(source.tensors, expected)
    assert source.contract == CONTRACT
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_card(path) == {"text": "é: a toy"}
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_tensors_that_share_memory_are_written_under_their_first_name(make_toy, tmp_path):
    network = make_toy(0)
    network.decoder[1][1] = network.decoder[0][1]
    write_weights(tmp_path / "a.safetensors", network, CONTRACT, {})
    first = {name: each for name, each in network.state_dict().items() if not name.startswith("decoder.1.1.")}
    assert equal(read_file(tmp_path / "a.safetensors").tensors, first)


def test_a_number_too_large_for_half_precision_is_refused_and_nothing_is_written(make_toy, tmp_path):
    network = make_toy(0)
    network.head.bias.data[0] = 1e6
    with pytest.raises(ValueError, match=r"not all numbers are finite in head\.bias"):
        write_weights(tmp_path / "a.safetensors", network, CONTRACT, {}, half=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nest", NESTS, ids=lambda nest: ".".join(nest) or "bare")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".model"])
def test_the_state_dict_is_found_and_all_else_ignored(nest, suffix, make_toy, tmp_path):
    tensors = dict(make_toy(0).state_dict())
    content = tensors | {"epoch": 3, "name": "x"}
    for key in nest:
        content = {key: content, "epoch": 3, "best": torch.tensor(0.5), "optimizer": {"state": {0: torch.ones(2)}}}
    torch.save(content, tmp_path / f"a{suffix}")
    source = read_file(tmp_path / f"a{suffix}")
    assert equal(source.tensors, tensors)
    assert source.contract is None


def test_a_checkpoint_of_our_own_gives_its_network_and_contract(make_toy, tmp_path):
    tensors = dict(make_toy(0).state_dict())
    state = {f"network.{key}": value for key, value in tensors.items()} | {"task.network.weight": torch.ones(1)}
    content = {"state_dict": state, "lightning_atlas": {"contract": CONTRACT.to_dict(), "fresh": []}}
    torch.save(content, tmp_path / "a.ckpt")
    source = read_file(tmp_path / "a.ckpt")
    assert equal(source.tensors, tensors)
    assert source.contract == CONTRACT


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(zipped, tmp_path):
    content = {"state_dict": {"a": torch.ones(1)}, "extra": Malicious()}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"a\.pt holds more than tensors: {os.system.__module__}\.system was blocked"):
        read_file(tmp_path / "a.pt")
    assert not Path("pwned").exists()


def test_a_harmless_object_is_named_and_its_remedy_works(make_toy, tmp_path, monkeypatch):
    network = make_toy(0)
    torch.save({"state_dict": network.state_dict(), "path": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"pathlib\.\w+ was blocked") as caught:
        read_file(tmp_path / "a.pt")
    monkeypatch.chdir(tmp_path)
    line, published = str(caught.value).split("\n")
    exec(line.split('python -c "')[1].rstrip('"'), {})
    assert equal(read_file(tmp_path / "tensors.pt").tensors, dict(network.state_dict()))
    assert "NAME=tensors.pt" in published


def test_plain_pickles_and_torchscript_are_refused_and_not_run(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(ValueError, match=r"a\.pt (holds more than tensors|is damaged)"):
        read_file(tmp_path / "a.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear was blocked"):
        read_file(tmp_path / "b.pt")
    assert not Path("pwned").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "noise"])
def test_a_damaged_file_is_named(suffix, damage, tmp_path):
    path = tmp_path / f"a{suffix}"
    save_file({"a": torch.ones(1000)}, path) if suffix == ".safetensors" else torch.save({"a": torch.ones(1000)}, path)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "noise": bytes(range(256)) * 10}[damage])
    with pytest.raises(ValueError, match=rf"a{suffix} is damaged"):
        read_file(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "holds no tensors at its top level nor under state_dict, net"),
        ({"epoch": 3, "state_dict": {}}, "it has epoch, state_dict"),
        (torch.ones(3), "holds a Tensor; expected a dict of tensors"),
        ({"good": torch.ones(3), "bad": torch.tensor([1.0, float("nan")])}, "not all numbers are finite in bad$"),
        ({"bad": torch.tensor([float("inf")], dtype=torch.float16)}, "not all numbers are finite in bad$"),
        ({"state_dict": {"a": torch.ones(1)}, "lightning_atlas": {}}, "no tensor's name starts with network"),
        (
            {"state_dict": {"network.a": torch.ones(1)}, "lightning_atlas": {"contract": {"colour": 1}}},
            "its contract cannot be read: a contract has no colour",
        ),
    ],
)
def test_a_file_without_usable_tensors_is_refused(content, told, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=told):
        read_file(tmp_path / "a.pt")


def test_a_broken_contract_in_a_header_is_named(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", metadata={"contract": "{not json"})
    with pytest.raises(ValueError, match=r"a\.safetensors: its contract cannot be read"):
        read_file(tmp_path / "a.safetensors")


def test_another_kind_of_file_and_another_hash_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"expected one that ends in \.safetensors, \.ckpt"):
        read_file(tmp_path / "a.npz")
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    found = hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=rf"its sha256 is {found}, expected {'0' * 64}"):
        read_file(tmp_path / "a.pt", "0" * 64)
    assert read_file(tmp_path / "a.pt", found).sha256 == found


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\n  <!DOCTYPE html>\n<html>", "is a web page, not weights: .*/resolve/"),
        (b"<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of git's .*git lfs pull"),
        (b"", "is damaged: it is empty"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".model"])
def test_what_a_browser_or_git_leaves_in_the_place_of_a_file_is_told(content, told, suffix, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_file(tmp_path / f"a{suffix}")


def test_single_numbers_of_numpy_are_read_and_its_objects_are_not(tmp_path):
    content = {"state_dict": {"a": torch.ones(1)}, "best": np.float64(0.5), "steps": np.int64(3), "last": np.float32(1)}
    torch.save(content, tmp_path / "a.model")
    assert read_file(tmp_path / "a.model").tensors.keys() == {"a"}
    torch.save(content | {"object": np.array([Malicious()], dtype=object)}, tmp_path / "b.model")
    with pytest.raises(ValueError, match="holds more than tensors"):
        read_file(tmp_path / "b.model")
    assert not (tmp_path / "pwned").exists()


def test_the_first_digits_of_a_hash_are_enough_where_no_more_are_known(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    found = hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()
    assert read_file(tmp_path / "a.pt", found[:8]).sha256 == found
    with pytest.raises(ValueError, match=f"expected x{found[:7]}"):
        read_file(tmp_path / "a.pt", f"x{found[:7]}")


def test_a_card_names_the_network(make_toy, tmp_path):
    spec = {"class_path": "somewhere.Toy", "init_args": {}}
    write_weights(tmp_path / "a.safetensors", make_toy(0), CONTRACT, {"network": spec, "licence": "MIT"})
    source = read_file(tmp_path / "a.safetensors")
    assert source.network == spec
    assert source.card["licence"] == "MIT"
