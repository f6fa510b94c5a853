import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.mednext import MedNeXtS

from lightning_atlas.networks.base import check_stages
from lightning_atlas.networks.mednext import MedNeXt

REFERENCE = json.loads((Path(__file__).parent / "mednext_reference.json").read_text(encoding="utf-8"))["networks"]
EXPANSIONS = {"S": (2,) * 9, "B": (2, 3, 4, 4, 4, 4, 4, 3, 2), "L": (3, 4, 8, 8, 8, 8, 8, 4, 3)}
DEPTHS = {"S": (2,) * 9, "M": (3, 4, 4, 4, 4, 4, 4, 4, 3), "L": (3, 4, 8, 8, 8, 8, 8, 4, 3)}
ONE_EACH: dict[str, Any] = {"features": 4, "depths": (1,) * 9}


@pytest.mark.parametrize("name", REFERENCE)
def test_it_is_the_published_network_with_its_names(name, fill, wave_image):
    expected = REFERENCE[name]
    sizes = (expected[key] for key in "nked")
    network = fill(MedNeXt(2, 3, *sizes, deep_supervision=True))
    lines = sorted(f"{key} {list(tensor.shape)}\n" for key, tensor in network.state_dict().items())
    assert len(lines) == expected["tensors"]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == expected["names_and_shapes_sha256"]
    image = wave_image(2, (16, 16, 32))
    outputs = network.train()(image)
    for output, wanted in zip(outputs, expected["outputs"], strict=True):
        assert list(output.shape) == wanted["shape"]
        found = output.detach().flatten()[wanted["places"]]
        torch.testing.assert_close(found.tolist(), wanted["values"], rtol=1e-9, atol=1e-9)
    assert torch.equal(network.eval()(image), outputs[0])


@pytest.mark.parametrize(
    ("expansions", "depths", "kernel_size", "millions"),
    [
        *(("S", "S", 3, 5.6), ("S", "S", 5, 5.9)),
        *(("B", "S", 3, 10.5), ("B", "S", 5, 11.0)),
        *(("B", "M", 3, 17.6), ("B", "M", 5, 18.3)),
        *(("L", "L", 3, 61.8), ("L", "L", 5, 63.0)),
    ],
)
def test_the_sizes_have_the_published_numbers_of_parameters(expansions, depths, kernel_size, millions):
    with torch.device("meta"):
        network = MedNeXt(1, 14, 32, kernel_size, EXPANSIONS[expansions], DEPTHS[depths])
    assert sum(each.numel() for each in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.015)


def test_the_small_one_is_monais_too_under_other_names():
    theirs, ours = MedNeXtS(in_channels=1, out_channels=3).eval(), MedNeXt(1, 3).eval()
    parts = {"enc_stages": "enc_block_{}", "down_blocks": "down_{}", "up_blocks": "up_{}", "dec_stages": "dec_block_{}"}
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        part, number, *rest = name.split(".")
        level = 3 - int(number) if part in ("up_blocks", "dec_stages") else number
        renamed[".".join([parts[part].format(level), *rest]) if part in parts else name] = tensor
    ours.load_state_dict(renamed, strict=True)
    image = torch.rand(1, 1, 32, 32, 32)
    torch.testing.assert_close(ours(image), theirs(image))


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_every_parameter_is_in_one_stage_and_learns(deep_supervision):
    network = MedNeXt(**ONE_EACH, deep_supervision=deep_supervision)
    check_stages(network)
    outputs = network(torch.rand(1, 1, 32, 32, 32))
    outputs = outputs if deep_supervision else [outputs]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert [stage.part for stage in network.stages()] == ["encoder"] * 5 + ["decoder"] * 4 + ["head"]


def test_every_level_gets_the_outputs_of_the_classes():
    network = MedNeXt(**ONE_EACH, deep_supervision=True)
    network.resize(5)
    outputs = network(torch.rand(1, 1, 32, 32, 32))
    assert [tuple(output.shape[1:3]) for output in outputs] == [(5, 32), (5, 16), (5, 8), (5, 4), (5, 2)]
    assert set(network.output_axes().values()) == {0, 1}  # transposed convolutions have their outputs second


def test_other_numbers_of_levels_are_refused():
    with pytest.raises(ValueError, match="found 9 expansions and 5 depths"):
        MedNeXt(depths=(1,) * 5)
