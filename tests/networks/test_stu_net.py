import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_atlas.networks.base import check_stages
from lightning_atlas.networks.stu_net import STUNet

REFERENCE = json.loads((Path(__file__).parent / "stu_net_reference.json").read_text(encoding="utf-8"))["networks"]
WIDTHS = (1, 2, 4, 8, 16, 16)


def small(**changes: Any) -> STUNet:
    sizes: dict[str, Any] = {"features": (4, 6, 8), "depths": (1, 2, 1), "strides": (1, 2, 2)}
    return STUNet(**sizes | changes)


@pytest.mark.parametrize("name", REFERENCE)
def test_it_is_the_published_network_with_its_names(name, fill, wave_image):
    expected = REFERENCE[name]
    network = fill(STUNet(2, 3, expected["dims"], expected["depth"], [1, *expected["pool"]], deep_supervision=True))
    lines = sorted(f"{key} {list(tensor.shape)}\n" for key, tensor in network.state_dict().items())
    assert len(lines) == expected["tensors"]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == expected["names_and_shapes_sha256"]
    outputs = network.train()(wave_image(2))
    for output, wanted in zip(outputs, expected["outputs"], strict=True):
        assert list(output.shape) == wanted["shape"]
        found = output.detach().flatten()[wanted["places"]]
        torch.testing.assert_close(found.tolist(), wanted["values"], rtol=1e-9, atol=1e-9)
    assert torch.equal(network.eval()(wave_image(2)), outputs[0])


@pytest.mark.parametrize(
    ("width", "depth", "millions"), [(16, 1, 14.60), (32, 1, 58.26), (64, 2, 440.30), (96, 3, 1457.33)]
)
def test_the_sizes_have_the_published_numbers_of_parameters(width, depth, millions):
    with torch.device("meta"):  # 105 outputs, as for TotalSegmentator
        network = STUNet(1, 105, [width * each for each in WIDTHS], [depth] * 6, deep_supervision=True)
    assert sum(each.numel() for each in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_every_parameter_is_in_one_stage_and_learns(deep_supervision):
    network = small(deep_supervision=deep_supervision)
    check_stages(network)
    outputs = network(torch.rand(2, 1, 16, 16, 16))
    outputs = outputs if deep_supervision else [outputs]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert [stage.part for stage in network.stages()] == ["encoder"] * 3 + ["decoder"] * 2 + ["head"]


def test_every_level_gets_the_outputs_of_the_classes():
    network = small(deep_supervision=True)
    network.resize(5)
    outputs = network(torch.rand(2, 1, 16, 16, 16))
    assert [tuple(output.shape[1:]) for output in outputs] == [(5, 16, 16, 16), (5, 8, 8, 8)]


def test_each_axis_has_its_own_multiple():
    network = small(strides=(1, (2, 2, 1), 2))
    assert network.size_multiple == (4, 4, 2)
    assert network(torch.rand(1, 1, 8, 12, 6)).shape == (1, 2, 8, 12, 6)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="3 features, 3 depths and 2 strides"):
        small(strides=(1, 2))
