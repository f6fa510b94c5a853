import pytest
import torch
from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet

from lightning_atlas.networks import SegResNet


@pytest.mark.parametrize("sizes", [{}, {"init_filters": 8, "blocks_down": (1, 2), "blocks_up": (2,)}])
def test_it_is_monais_network_with_monais_keys(sizes):
    torch.manual_seed(0)
    theirs = MonaiSegResNet(in_channels=2, out_channels=3, **{"init_filters": 16, **sizes}).eval()
    ours = SegResNet(in_channels=2, out_channels=3, **sizes).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image = torch.rand(1, 2, 16, 16, 8)
    assert torch.equal(ours(image), theirs(image))


def test_dropout_acts_in_training_only():
    image = torch.rand(1, 1, 8, 8, 8)
    network = SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,), dropout=0.5)
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


def test_a_decoder_that_would_stop_short_is_refused():
    with pytest.raises(ValueError, match=r"3 levels up for 4 levels down; blocks_up is \[1, 1\]"):
        SegResNet(blocks_up=(1, 1))


@pytest.mark.parametrize(("outputs", "parameters"), [(32, 4_701_424), (25, 4_701_305)])
def test_the_default_has_the_tensors_of_the_published_network(outputs, parameters):
    with torch.device("meta"):
        network = SegResNet(out_channels=outputs)
    tensors = network.state_dict()
    assert len(tensors) == 83
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    heads = {"convInit", "down_layers", "up_layers", "up_samples", "conv_final"}
    assert {name.partition(".")[0] for name in tensors} == heads
    assert tensors["conv_final.2.conv.weight"].shape == (outputs, 16, 1, 1, 1)
    assert network.output_axes() == {"conv_final.2.conv.weight": 0, "conv_final.2.conv.bias": 0}
