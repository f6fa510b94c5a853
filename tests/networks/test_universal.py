import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn import functional as F

from lightning_atlas.networks import Backbone, GenesisUNet, Network, SwinUNETR, UniversalNetwork, universal as source
from lightning_atlas.networks.base import check_stages

HEAD = {
    "organ_embedding": (32, 512),
    "precls_conv.0.weight": (48,),
    "precls_conv.0.bias": (48,),
    "precls_conv.2.weight": (8, 48, 1, 1, 1),
    "precls_conv.2.bias": (8,),
    "GAP.0.weight": (768,),
    "GAP.0.bias": (768,),
    "GAP.3.weight": (256, 768, 1, 1, 1),
    "GAP.3.bias": (256,),
    "controller.weight": (153, 512, 1, 1, 1),
    "controller.bias": (153,),
    "text_to_vision.weight": (256, 512),
    "text_to_vision.bias": (256,),
}


def tiny(classes: int = 3) -> UniversalNetwork:
    backbone = GenesisUNet(init_filters=8, batch_statistics=True)
    return UniversalNetwork(backbone, classes, text_features=6, condition_features=4)


def test_with_the_unet_it_has_the_tensors_of_the_published_network():
    with torch.device("meta"):
        network = UniversalNetwork(GenesisUNet())
    names = network.state_dict()
    assert len(names) == 117
    assert {name for name in names if not name.startswith("backbone.")} == set(HEAD)
    assert sum(parameter.numel() for parameter in network.parameters()) == 19_416_417
    check_stages(network)


def test_with_swin_unetr_it_has_the_tensors_of_the_published_network():
    network = UniversalNetwork(SwinUNETR())
    tensors = network.state_dict()
    body = [name for name in tensors if name.startswith("backbone.")]
    assert (len(tensors), len(body)) == (170, 157)
    assert {name.split(".")[1].rstrip("0123456789") for name in body} == {"swinViT", "encoder", "decoder"}
    assert {name: tuple(tensors[name].shape) for name in HEAD} == HEAD
    assert sum(parameter.numel() for parameter in network.parameters()) == 62_595_315
    check_stages(network)


def naive(network: UniversalNetwork, image: torch.Tensor) -> torch.Tensor:
    """One case and one class at a time, layer by layer, each layer an ordinary convolution."""
    coarse, fine = network.backbone.features(image)
    of = dict(network.named_parameters())
    cases = []
    for case in range(len(image)):
        seen = F.relu(F.group_norm(coarse[case : case + 1], 16, of["GAP.0.weight"], of["GAP.0.bias"]))
        seen = of["GAP.3.weight"].flatten(1) @ seen.mean(dim=(0, 2, 3, 4)) + of["GAP.3.bias"]
        start = F.relu(F.group_norm(fine[case : case + 1], 16, of["precls_conv.0.weight"], of["precls_conv.0.bias"]))
        start = F.conv3d(start, of["precls_conv.2.weight"], of["precls_conv.2.bias"])
        logits = []
        for row in network.organ_embedding:
            text = F.relu(of["text_to_vision.weight"] @ row + of["text_to_vision.bias"])
            numbers = of["controller.weight"].flatten(1) @ torch.cat([seen, text]) + of["controller.bias"]
            first, second, third = numbers[:64].view(8, 8), numbers[64:128].view(8, 8), numbers[128:136].view(1, 8)
            maps = F.relu(F.conv3d(start, first[..., None, None, None], numbers[136:144]))
            maps = F.relu(F.conv3d(maps, second[..., None, None, None], numbers[144:152]))
            logits.append(F.conv3d(maps, third[..., None, None, None], numbers[152:]))
        cases.append(torch.cat(logits, dim=1))
    return torch.cat(cases)


@pytest.mark.parametrize("voxels_at_once", [2**16, 1000])
@pytest.mark.parametrize("learning", [False, True])
def test_it_equals_a_loop_over_cases_and_classes(monkeypatch, voxels_at_once, learning):
    monkeypatch.setattr(source, "VOXELS_AT_ONCE", voxels_at_once)
    network, image = tiny().double(), torch.rand(2, 1, 16, 8, 24, dtype=torch.double)
    with torch.set_grad_enabled(learning):
        logits, expected = network(image), naive(network, image)
    assert logits.shape == (2, 3, 16, 8, 24)
    assert logits.std(dim=1).mean() > 1e-3
    torch.testing.assert_close(logits, expected)
    if learning:
        weight = torch.rand_like(logits)
        ours = torch.autograd.grad((logits * weight).sum(), list(network.parameters()))
        theirs = torch.autograd.grad((expected * weight).sum(), list(network.parameters()))
        torch.testing.assert_close(ours, theirs)


def test_no_hidden_map_of_all_voxels_is_kept(monkeypatch):
    monkeypatch.setattr(source, "VOXELS_AT_ONCE", 512)
    network, image = tiny(classes=20), torch.rand(1, 1, 16, 16, 16)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda x: x):
        network(image)
    assert max(sizes) < 20 * 8 * 16**3


def test_an_output_follows_its_row_alone():
    network, image = tiny().eval(), torch.rand(1, 1, 16, 16, 16)
    before = network(image)
    network.organ_embedding = network.organ_embedding[[2, 0, 0, 1]]
    torch.testing.assert_close(network(image), before[:, [2, 0, 0, 1]])


def test_resizing_draws_rows_and_touches_nothing_else():
    network = tiny()
    before = network.state_dict(keep_vars=True)
    network.resize(7)
    after = network.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert {name for name in after if after[name] is not before[name]} == {"organ_embedding"}
    assert network.organ_embedding.shape == (7, 6)
    assert network(torch.rand(1, 1, 16, 16, 16)).shape[1] == 7
    assert network.output_axes() == {"organ_embedding": 0}
    check_stages(network)


def test_resizing_to_the_same_number_keeps_the_rows():
    network = tiny()
    before = network.organ_embedding
    network.resize(3)
    assert network.organ_embedding is before


def test_stages_are_those_of_the_backbone_and_the_text_head_called_in_their_order():
    network = tiny()
    stages = network.stages()
    assert [stage.part for stage in stages] == ["encoder"] * 4 + ["decoder"] * 3 + ["head"]
    modules = dict(network.named_modules())
    listed = [name for stage in stages for name in stage.modules if name in modules]
    called = []
    for name in listed:
        modules[name].register_forward_pre_hook(lambda *_, name=name: called.append(name))
    network(torch.rand(1, 1, 16, 16, 16))
    body = [name for name in listed if name.startswith("backbone.")]
    assert called[: len(body)] == body
    assert sorted(called[len(body) :]) == sorted(set(listed) - set(body)) == sorted(listed[len(body) :])


def test_every_parameter_learns():
    network = tiny().train()
    network(torch.rand(1, 1, 16, 16, 16)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    assert not network.organ_embedding.requires_grad


def test_it_has_the_size_and_the_conventions_of_its_backbone():
    network = UniversalNetwork(SwinUNETR(feature_size=12, merging="monai_0.9"), 2)
    assert network.size_multiple == 32
    assert network.conventions() == {"merging": "monai_0.9"}
    assert network.eval()(torch.rand(1, 1, 64, 32, 32)).shape == (1, 2, 64, 32, 32)
    assert isinstance(network.backbone.out, nn.Identity)


def test_half_precision_stays_near():
    network, image = tiny().eval(), torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        expected = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(image)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 0.05 * expected.std()


def test_a_recipe_builds_it_and_a_network_without_features_is_refused():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Network)
    backbone = {"class_path": "GenesisUNet", "init_args": {"init_filters": 8}}
    recipe = {"network": {"class_path": "UniversalNetwork", "init_args": {"backbone": backbone, "out_channels": 4}}}
    network = parser.instantiate(parser.parse_object(recipe)).network
    assert isinstance(network.backbone, Backbone)
    assert network(torch.rand(1, 1, 16, 16, 16)).shape == (1, 4, 16, 16, 16)
    recipe["network"]["init_args"]["backbone"] = {"class_path": "lightning_atlas.UNet"}
    with pytest.raises(Exception, match="Backbone"):
        parser.parse_object(recipe)
