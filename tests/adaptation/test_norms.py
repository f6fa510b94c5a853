"""A layer that normalises cannot be forgotten: whatever has parameters of its own is known to do so, or not to."""

import importlib
import inspect
import pkgutil

import pytest
from monai.networks.nets.swin_unetr import WindowAttention
from networks.test_stage_order import BUILT
from torch import nn

from lightning_atlas import networks
from lightning_atlas.adaptation import AutoRGN, NormOnly
from lightning_atlas.adaptation.catalogue import NORMS
from lightning_atlas.networks import GenesisUNet, UniMiSS
from lightning_atlas.networks.collapse import FullKernel, GroupTransform
from lightning_atlas.networks.low_rank import LowRank

OTHERS = (
    *(nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d, nn.Linear, nn.PReLU),
    *(WindowAttention, UniMiSS, FullKernel, GroupTransform, LowRank),
)
"""What has parameters and does not normalise."""
NETWORKS = {label: build for label, (build, _) in BUILT.items()} | {
    "GenesisUNet, statistics of the batch": lambda: GenesisUNet(init_filters=4, batch_statistics=True)
}


def unknown(kinds):
    # A bare Module computes nothing: it gives its parameters a name.
    return sorted(each.__qualname__ for each in kinds - {nn.Module} if not issubclass(each, (*NORMS, *OTHERS)))


@pytest.mark.parametrize("label", NETWORKS)
def test_each_layer_of_each_network_is_known_to_normalise_or_not(label):
    network = NETWORKS[label]()
    assert unknown({type(each) for each in network.modules() if [*each.parameters(recurse=False)]}) == []
    assert bool(AutoRGN().holds(network, ())) == (label != "ValidUNet")  # it has no layer that normalises


def test_each_layer_that_the_package_writes_is_known_to_normalise_or_not():
    modules = [
        importlib.import_module(each.name)
        for each in pkgutil.walk_packages(networks.__path__, "lightning_atlas.networks.")
    ]
    written = [
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and issubclass(kind, nn.Module)
    ]
    own = {
        kind
        for kind in written
        if "nn.Parameter(" in inspect.getsource(kind) or "register_parameter(" in inspect.getsource(kind)
    }
    assert len(own) > 3
    assert unknown(own) == []


def test_norms_by_the_statistics_of_the_batch_count_as_ordinary_ones_do():
    networks = [GenesisUNet(init_filters=4, batch_statistics=by_batch) for by_batch in (True, False)]
    for adaptation in (NormOnly(), AutoRGN()):
        held = [adaptation.holds(each, {"head"}) for each in networks]
        assert held[0] == held[1] != set()
