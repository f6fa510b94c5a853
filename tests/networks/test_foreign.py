import copy
import pickle
import sys

import pytest
import torch
from jsonargparse import ArgumentParser
from monai.networks.nets.dynunet import DynUNet
from torch import nn

from lightning_atlas.networks import Network, UNet, as_network
from lightning_atlas.networks.base import check_stages

ENCODER = ["input_block", "downsamples.0", "bottleneck"]
DECODER = ["upsamples.0", "upsamples.1"]
HEAD = ["output_block"]

DYNUNET_YAML = """
network:
  class_path: lightning_atlas.networks.as_network
  init_args:
    network:
      class_path: monai.networks.nets.DynUNet
      init_args:
        spatial_dims: 3
        in_channels: 1
        out_channels: 2
        kernel_size: [3, 3, 3]
        strides: [1, 2, 2]
        upsample_kernel_size: [2, 2]
        filters: [4, 6, 8]
    encoder: [input_block, downsamples.0, bottleneck]
    decoder: [upsamples.0, upsamples.1]
    head: [output_block]
    size_multiple: 4
"""

OWN_FILE = """
from torch import nn


class TwoLayers(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inside = nn.Conv3d(1, width, 3, padding=1)
        self.outside = nn.Conv3d(width, 2, 1)

    def forward(self, image):
        return self.outside(self.inside(image))
"""

OWN_YAML = """
network:
  class_path: lightning_atlas.networks.as_network
  init_args:
    network: {class_path: two_layers.TwoLayers, init_args: {width: 3}}
    encoder: [inside]
    decoder: []
    head: [outside]
"""


def dynunet() -> DynUNet:
    return DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 6, 8])


def parse(text: str) -> Network:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Network)
    return parser.instantiate(parser.parse_string(text)).network


def test_keys_tensors_and_results_stay_as_they_were():
    network = dynunet().eval()
    image = torch.rand(1, 1, 8, 8, 8)
    keys, parameters, result = list(network.state_dict()), list(network.parameters()), network(image)
    adopted = as_network(network, ENCODER, DECODER, HEAD, size_multiple=4)
    assert isinstance(adopted, Network)
    assert isinstance(adopted, DynUNet)
    assert list(adopted.state_dict()) == keys
    assert all(mine is theirs for mine, theirs in zip(adopted.parameters(), parameters, strict=True))
    assert torch.equal(adopted(image), result)


def test_each_axis_may_have_a_multiple_of_its_own():
    network = parse(DYNUNET_YAML.replace("size_multiple: 4", "size_multiple: [4, 4, 8]"))
    assert network.size_multiple == (4, 4, 8)
    assert network.conventions() == {}
    with pytest.raises(ValueError, match="to 8 x 4 x 16 voxels"):
        network(torch.rand(1, 1, 8, 4, 12))


def test_a_checkpoint_of_the_module_itself_loads_strictly():
    source, adopted = dynunet(), as_network(dynunet(), ENCODER, DECODER, HEAD)
    adopted.load_state_dict(source.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(adopted.parameters(), source.parameters(), strict=True))


def test_other_modules_of_the_class_stay_what_they_were():
    as_network(dynunet(), ENCODER, DECODER, HEAD)
    assert type(dynunet()) is DynUNet


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_is_a_network_of_its_own(clone):
    network = as_network(dynunet(), ENCODER, DECODER, HEAD, size_multiple=4).eval()
    image = torch.rand(1, 1, 8, 8, 8)
    result = network(image)
    copied = clone(network)
    assert type(copied) is type(network)
    assert copied.stages() == network.stages()
    assert copied.size_multiple == 4
    check_stages(copied)
    assert torch.equal(copied(image), result)
    with torch.no_grad():
        copied.get_parameter("output_block.conv.conv.weight").zero_()
    assert not torch.equal(copied(image), result)
    assert torch.equal(network(image), result)


@pytest.mark.parametrize(
    ("encoder", "decoder", "told"),
    [
        (ENCODER[:-1], DECODER, r"in no stage: bottleneck\.conv1\.conv\.weight"),
        ([*ENCODER, "upsamples.0"], DECODER, "names of several stages: upsamples.0"),
        ([*ENCODER, "skip_layers.downsample"], DECODER, r"several stages: input_block\.conv1\.conv\.weight"),
        (["input_blok"], DECODER, "no module or parameter 'input_blok'; nearest: input_block"),
    ],
)
def test_parts_that_do_not_cover_are_named(encoder, decoder, told):
    with pytest.raises(ValueError, match=told):
        as_network(dynunet(), encoder, decoder, HEAD)


def test_a_second_name_of_a_module_serves_as_well_as_the_first():
    check_stages(as_network(dynunet(), ["skip_layers.downsample", *ENCODER[1:]], DECODER, HEAD))


def test_wrong_names_can_be_corrected_on_the_same_module():
    network = dynunet()
    with pytest.raises(ValueError, match="in no stage"):
        as_network(network, ENCODER, [], HEAD)
    assert [stage.name for stage in as_network(network, ENCODER, DECODER, HEAD).stages()] == ENCODER + DECODER + HEAD


def test_a_network_and_a_module_that_uses_its_names_are_refused():
    with pytest.raises(ValueError, match="UNet names its stages already"):
        as_network(UNet(features=(4, 4)), [], [], ["head"])
    module = nn.Module()
    module.stages = nn.ModuleList([nn.Linear(1, 1)])
    with pytest.raises(ValueError, match="its own `stages`"):
        as_network(module, ["stages.0"], [], [])


def test_a_recipe_makes_a_network_of_monais_dynunet():
    network = parse(DYNUNET_YAML)
    assert [stage.part for stage in network.stages()] == ["encoder"] * 3 + ["decoder"] * 2 + ["head"]
    assert list(network.state_dict()) == list(dynunet().state_dict())
    assert network(torch.rand(1, 1, 8, 4, 12)).shape == (1, 2, 8, 4, 12)


def test_a_recipe_makes_a_network_of_a_class_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "two_layers.py").write_text(OWN_FILE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    network = parse(OWN_YAML)
    monkeypatch.delitem(sys.modules, "two_layers")
    assert [stage.name for stage in network.stages()] == ["inside", "outside"]
    assert network(torch.rand(1, 1, 5, 6, 7)).shape == (1, 2, 5, 6, 7)
