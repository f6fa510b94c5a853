"""Files in the layout of Keras, and the published one of Humpire-Mamani et al.: random numbers, few channels."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_atlas.intake import zoo
from lightning_atlas.intake.keras import keras_tensors
from lightning_atlas.intake.loading import by_entry, load_weights, read_weights
from lightning_atlas.intake.weights import SourceWeights, read_file
from lightning_atlas.networks import ValidUNet

ENTRY = zoo.find("humpire_valid_unet")
FEATURES = (1, 2, 3, 2)


class Group(dict):
    """What h5py gives for a group."""

    def __init__(self, attrs, **members):
        super().__init__(members)
        self.attrs = attrs


def layers(random, outputs=23):
    """Name -> kernel and bias, in the axes of Keras: z, y, x, inputs, outputs; as in the summary that was published."""
    wide = [2 * each for each in FEATURES]
    shapes = [
        shape
        for above, here in zip([1, *wide[:-1]], FEATURES, strict=True)
        for shape in ((above, here), (here, 2 * here))
    ]
    shapes += [
        shape
        for below, here in zip(wide[:0:-1], wide[-2::-1], strict=True)
        for shape in ((below + here, here), (here, here))
    ]
    named = {f"conv3d_{number}" if number else "conv3d": (3, 3, 3, *shape) for number, shape in enumerate(shapes)}
    named["output_segm"] = (1, 1, 1, wide[0], outputs)
    return {
        name: (random.normal(size=shape).astype("float32"), random.normal(size=shape[-1]).astype("float32"))
        for name, shape in named.items()
    }


def as_group(content, first=0):
    """A file as `save_weights` writes it, of a session in which so many convolutions were made before."""
    names = {}
    for name in content:
        base, _, number = name.partition("_")
        names[name] = f"{base}_{int(number or 0) + first}" if first and base == "conv3d" else name
    members = {
        names[name]: Group(
            {"weight_names": [f"{names[name]}/kernel:0".encode(), f"{names[name]}/bias:0".encode()]},
            **{f"{names[name]}/kernel:0": kernel, f"{names[name]}/bias:0": bias},
        )
        for name, (kernel, bias) in content.items()
    }
    members["max_pooling3d"] = Group({"weight_names": []})
    order = [*list(members)[:2], "max_pooling3d", *list(members)[2:-1]]
    return Group({"layer_names": [each.encode() for each in order]}, **members)


@pytest.fixture
def content():
    return layers(np.random.default_rng(5))


def by_keras(content, image):
    """What the published network computes of an array z, y, x, in NumPy's order; its background comes last."""

    def layer(maps, name, activate=True):
        kernel, bias = (torch.from_numpy(each).double() for each in content[name])
        maps = F.conv3d(maps, kernel.permute(4, 3, 0, 1, 2), bias)
        return maps.clamp(min=0) if activate else maps

    def name(number):
        return f"conv3d_{number}" if number else "conv3d"

    skips, maps = [], image
    for level in range(4):
        maps = layer(layer(F.max_pool3d(maps, 2) if level else maps, name(2 * level)), name(2 * level + 1))
        skips.append(maps)
    for level, skip in enumerate(skips[2::-1]):
        up = F.interpolate(maps, scale_factor=2)
        crop = (skip.shape[2] - up.shape[2]) // 2
        inner = slice(crop, skip.shape[2] - crop)
        maps = torch.cat([up, skip[:, :, inner, inner, inner]], 1)
        maps = layer(layer(maps, name(8 + 2 * level)), name(9 + 2 * level))
    return layer(maps, "output_segm", activate=False)


@pytest.mark.parametrize("first", [0, 37])
@torch.no_grad()
def test_the_published_layout_computes_the_same_with_turned_axes_and_background_first(content, first):
    source = by_entry(SourceWeights(keras_tensors(as_group(content, first)), None, "some.h5", "0" * 64), ENTRY)
    network = ValidUNet(features=FEATURES, out_channels=23)
    report = load_weights(network, source, ENTRY.contract.classes, required_share=1.0)
    assert not report.fresh_names
    assert report.left_over == []
    array = torch.randn(1, 1, 92, 92, 92, dtype=torch.double)
    expected = by_keras(content, array)
    found = network.double()(array.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    torch.testing.assert_close(found[:, 1:], expected[:, :-1])
    torch.testing.assert_close(found[:, 0], expected[:, -1])


def test_outputs_go_to_classes_by_name_and_never_by_their_place(content):
    """The published script keeps the last rows, whatever they are: sternum, stomach, trachea for three new classes."""
    source = by_entry(SourceWeights(keras_tensors(as_group(content)), None, "some.h5", "0" * 64), ENTRY)
    network: Any = ValidUNet(features=FEATURES, out_channels=4)
    before = network.head.weight.detach().clone()
    report = load_weights(network, source, ("esophagus", "trachea", "liver"), required_share=1.0)
    kernel, bias = content["output_segm"]
    rows = {0: 22, 2: 21, 3: 10}  # ours: theirs, as their README numbers them
    for ours, theirs in rows.items():
        assert np.array_equal(network.head.weight[ours, :, 0, 0, 0].detach(), kernel[0, 0, 0, :, theirs])
        assert network.head.bias[ours].item() == bias[theirs]
    assert torch.equal(network.head.weight[1], before[1])
    assert report.fresh_outputs == ["esophagus"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_file_is_read_by_its_name_and_fills_the_network(content, nested, tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / ENTRY.path.name
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if nested else file
        group = as_group(content)
        root.attrs["layer_names"] = group.attrs["layer_names"]
        for name, layer in group.items():
            made = root.create_group(name)
            made.attrs["weight_names"] = layer.attrs["weight_names"]
            for weight, array in layer.items():
                made[weight] = array
    monkeypatch.setattr(zoo, "entries", lambda: {ENTRY.name: replace(ENTRY, path=path)})
    for name in (ENTRY.name, str(path), f"{ENTRY.name}={path}"):
        source = read_weights(name)
        network: Any = ValidUNet(features=FEATURES, out_channels=23)
        load_weights(network, source, ENTRY.contract.classes, required_share=1.0)
        assert torch.equal(network.encoder[0][0].bias, torch.from_numpy(content["conv3d"][1]))
        assert source.card["task"]["threshold"] == 0.5
        assert source.contract == ENTRY.contract
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match="is damaged, or no weights file of Keras 1 or 2"):
        read_file(path)


def test_without_h5py_the_error_says_what_to_type(tmp_path, monkeypatch):
    path = tmp_path / "some.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"some.h5 is a file of Keras, which h5py reads: pip install h5py"):
        read_file(path)


def test_a_file_that_lists_no_layers_is_refused():
    with pytest.raises(ValueError, match="no attribute layer_names, neither at its top nor in model_weights"):
        keras_tensors(Group({}))


def test_the_entry_says_what_is_known_and_asks_for_the_rest():
    assert (ENTRY.contract.window, ENTRY.contract.range) == ((-500.0, 400.0), (-500.0, 400.0))
    assert ENTRY.contract.spacing_mm is None
    assert any("voxel size is not published" in each for each in ENTRY.doubts)
    assert any("ONNX" in each for each in ENTRY.doubts)
