import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_atlas.networks.base import check_stages, stage_parameters
from lightning_atlas.networks.nnunet import NnUNet

WRITTEN = json.loads((Path(__file__).parent / "nnunet_reference.json").read_text(encoding="utf-8"))
REFERENCE = WRITTEN["networks"]


def small(**changes: Any) -> NnUNet:
    sizes: dict[str, Any] = {"features": (4, 6, 8), "kernel_sizes": (3, 3, 3), "strides": (1, 2, 2), "depths": (1,) * 5}
    return NnUNet(**sizes | changes)


def ours(theirs: dict, outputs: int = 3) -> NnUNet:
    """Build from nnU-Net's arguments, in its own order of axes."""
    residual = "n_blocks_per_stage" in theirs
    encoder = theirs["n_blocks_per_stage"] if residual else theirs["n_conv_per_stage"]
    return NnUNet(
        2,
        outputs,
        theirs["features_per_stage"],
        theirs["kernel_sizes"],
        theirs["strides"],
        [*encoder, *theirs["n_conv_per_stage_decoder"]],
        residual,
        "batch" if "BatchNorm" in theirs["norm_op"] else "instance",
        "leaky_relu" if "Leaky" in theirs["nonlin"] else "relu",
        deep_supervision=True,
    )


@pytest.mark.parametrize("name", REFERENCE)
def test_names_and_shapes_are_those_of_nnunets_network(name):
    state = ours(REFERENCE[name]["arch_kwargs"]).state_dict()
    lines = "".join(f"{key} {list(tensor.shape)}\n" for key, tensor in state.items())
    assert len(state) == REFERENCE[name]["tensors"]
    assert hashlib.sha256(lines.encode()).hexdigest() == REFERENCE[name]["names_and_shapes_sha256"]


@pytest.mark.parametrize("name", REFERENCE)
def test_it_computes_what_nnunets_network_computes(name, fill, wave_image):
    network = fill(ours(REFERENCE[name]["arch_kwargs"])).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eval()
    outputs = network(wave_image(2))
    assert len(outputs) == len(REFERENCE[name]["outputs"]) == 2
    for output, expected in zip(outputs, REFERENCE[name]["outputs"], strict=True):
        assert list(output.shape) == expected["shape"]
        found = output.detach().flatten()
        torch.testing.assert_close(found[expected["places"]].tolist(), expected["values"], rtol=1e-9, atol=1e-9)
        assert found.std().item() == pytest.approx(expected["std"], rel=1e-9)
    assert torch.equal(network.eval()(wave_image(2)), outputs[0])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_every_parameter_is_in_one_stage_and_learns(residual, deep_supervision):
    network = small(residual=residual, deep_supervision=deep_supervision)
    check_stages(network)
    outputs = network(torch.rand(2, 1, 16, 16, 16))
    outputs = outputs if deep_supervision else [outputs]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    parts = [stage.part for stage in network.stages()]
    assert parts == ["encoder"] * 3 + ["decoder"] * 2 + ["head"]


def test_only_the_finest_output_is_there_without_deep_supervision():
    names = {name for name in small().state_dict() if "seg_layers" in name}
    assert names == {"decoder.seg_layers.1.weight", "decoder.seg_layers.1.bias"}


def test_every_level_gets_the_outputs_of_the_classes():
    network = small(deep_supervision=True)
    kept = network.state_dict()["decoder.stages.1.convs.0.conv.weight"]
    network.resize(5)
    assert [output.shape[1] for output in network(torch.rand(2, 1, 16, 16, 16))] == [5, 5]
    assert network.output_axes() == dict.fromkeys(
        [f"decoder.seg_layers.{level}.{kind}" for level in (0, 1) for kind in ("weight", "bias")], 0
    )
    assert torch.equal(network.state_dict()["decoder.stages.1.convs.0.conv.weight"], kept)


def test_each_axis_has_its_own_multiple():
    network = small(strides=(1, (2, 2, 1), 2))
    assert network.size_multiple == (4, 4, 2)
    assert network(torch.rand(1, 1, 8, 12, 6)).shape == (1, 2, 8, 12, 6)
    with pytest.raises(ValueError, match=r"multiples of \(4, 4, 2\).* 8 x 10 x 6 voxels.* 8 x 12 x 6 voxels"):
        network(torch.rand(1, 1, 8, 10, 6))


def test_the_encoder_is_counted_once_though_the_decoder_holds_it_too():
    network = small()
    in_stages = sum(each.numel() for stage in network.stages() for each in stage_parameters(network, stage).values())
    assert in_stages == sum(each.numel() for each in network.parameters())


def test_planned_networks_have_as_many_parameters_as_nnunets():
    with torch.device("meta"):
        plain = NnUNet(1, 3, deep_supervision=True)
        depths = (1, 3, 4, 6, 6, 6, 1, 1, 1, 1, 1)
        residual = NnUNet(1, 3, depths=depths, residual=True, deep_supervision=True)
    found = {"plain": plain, "residual": residual}
    assert {name: sum(each.numel() for each in one.parameters()) for name, one in found.items()} == WRITTEN[
        "parameters"
    ]


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"found kernel_sizes 3, strides 2, depths 5; expected .*strides 3"):
        small(strides=(1, 2))
