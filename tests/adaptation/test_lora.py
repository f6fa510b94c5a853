"""LoRA as an adaptation: what it changes in a network, what moves, and what a file of it is read as."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_atlas.adaptation import AdaptationPlan, FrozenEncoder, LoRA
from lightning_atlas.adaptation.lora import is_given
from lightning_atlas.intake import load_weights, read_weights
from lightning_atlas.networks import SwinUNETR, UNet, as_network
from lightning_atlas.networks.base import check_stages

HEAD = {"head"}


def settled(network, fresh=HEAD, **options):
    """Return a network in training whose LoRA is in place, and the names of what moves."""
    adaptation = LoRA(**options)
    adaptation.build(network, fresh)
    plan = AdaptationPlan([adaptation], network, fresh, 10)
    plan.freeze()
    network.train()
    plan.set_modes(0)
    return network, {name for name, each in network.named_parameters() if each.requires_grad}


def train_a_step(network, image):
    optimizer = torch.optim.SGD([each for each in network.parameters() if each.requires_grad], lr=0.1)
    network(image).pow(2).mean().backward()
    optimizer.step()


def test_a_network_starts_from_its_weights_to_the_bit(make_toy):
    image, network = torch.randn(1, 1, 4, 4, 4), make_toy(1).eval()
    before = network(image)
    LoRA(rank=2).build(network, HEAD)
    assert torch.equal(network(image), before)
    assert not is_parametrized(network.head)


def test_the_updates_and_the_head_move_and_nothing_else(make_toy):
    network, moving = settled(make_toy(1), rank=2)
    before = {name: each.clone() for name, each in network.state_dict().items()}
    for _ in range(2):  # A first has a gradient once B has left 0
        train_a_step(network, torch.randn(2, 1, 4, 4, 4))
    changed = {name for name, each in network.state_dict().items() if not torch.equal(each, before[name])}
    assert changed == moving
    assert {name for name in moving if not name.startswith("head.")} == {
        f"{part}.{number}.0.parametrizations.weight.0.{matrix}"
        for part in ("encoder", "decoder")
        for number in (0, 1)
        for matrix in "AB"
    }
    check_stages(network)


def test_a_fresh_stage_moves_whole_and_its_updates_rest_at_zero(make_toy):
    network, moving = settled(make_toy(1), {"decoder.1", "head"}, rank=2)
    update = network.decoder[1][0].parametrizations.weight[0]
    assert "decoder.1.0.parametrizations.weight.original" in moving
    assert "decoder.1.1.weight" in moving
    train_a_step(network, torch.randn(2, 1, 4, 4, 4))
    assert not update.B.any()
    assert network.decoder[1][1].training
    assert not network.decoder[0][1].training


def test_the_structure_does_not_depend_on_what_was_fresh(make_toy):
    """Or a checkpoint would not fit the network that a test builds, which does not know."""
    networks = [settled(make_toy(1), fresh, rank=2)[0] for fresh in (set(), HEAD, {"encoder.0", "decoder.1", "head"})]
    shapes = [{name: each.shape for name, each in network.state_dict().items()} for network in networks]
    assert shapes[0] == shapes[1] == shapes[2]


def test_patterns_choose_layers_and_other_adaptations_hold_more(make_toy):
    network, moving = settled(make_toy(1), rank=2, layers=["encoder.1.*", "decoder.*"])
    assert not any(name.startswith("encoder.0") for name in moving)
    assert any(name.startswith("encoder.1") for name in moving)
    plan = AdaptationPlan([LoRA(), FrozenEncoder()], network, HEAD, 10)
    plan.freeze()
    assert plan.frozen == {"encoder.0", "encoder.1"}


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (lambda: UNet(features=(4, 8)), 8),
        pytest.param(lambda: SwinUNETR(feature_size=12), 64, marks=pytest.mark.slow),
    ],
    ids=["UNet", "SwinUNETR"],
)
def test_real_networks_take_it_and_merge_back(make, side, tmp_path):
    network, plain, image = make(), make(), torch.randn(1, 1, side, side, side)
    names = set(network.state_dict())
    settled(network, rank=2)
    train_a_step(network, image)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    source = read_weights(str(tmp_path / "w.pt"))
    assert set(source.tensors) == names
    load_weights(plain, source, required_share=1.0)
    with torch.no_grad():
        assert torch.equal(plain.eval()(image), network.eval()(image))


def test_a_file_whose_parts_are_missing_is_refused_by_name(make_toy, tmp_path):
    tensors = settled(make_toy(1), rank=2)[0].state_dict()
    del tensors["encoder.1.0.parametrizations.weight.0.B"]
    torch.save(tensors, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt: encoder\.1\.0\.weight is in parts.*0\.B is missing"):
        read_weights(str(tmp_path / "w.pt"))


def test_a_caution_tells_where_there_is_nothing_to_adapt(make_toy):
    stages = make_toy(1).stages()
    assert LoRA().cautions(stages, {"head", "encoder.0"}) == []
    assert "everything moves whole" in LoRA().cautions(stages, {stage.name for stage in stages})[0]


def test_mistakes_are_named(make_toy):
    flat = as_network(
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.GroupNorm(1, 1), nn.Linear(1, 2)),
        encoder=["0", "1"],
        decoder=[],
        head=["2"],
    )
    with pytest.raises(ValueError, match=r"nothing to adapt in .*no plain Linear, Conv3d or ConvTranspose3d"):
        LoRA().build(flat, HEAD)
    with pytest.raises(ValueError, match=re.escape("matches 'encoder.9.*'; there are 4, such as encoder.")):
        LoRA(layers=["decoder.*", "encoder.9.*"]).build(make_toy(1), HEAD)
    with pytest.raises(ValueError, match="matches 'head'"):
        LoRA(layers=["head"]).build(make_toy(1), HEAD)
    with pytest.raises(ValueError, match="there are 4"):
        LoRA(layers=["encoder.0"]).build(make_toy(1), HEAD)
    for make in (lambda: LoRA(rank=0), lambda: LoRA(alpha=0.0), lambda: LoRA(layers=[])):
        with pytest.raises(ValueError, match="LoRA"):
            make()


def test_what_weights_gave_is_told_by_its_name_before_the_updates(make_toy):
    network = make_toy(1)
    fresh_names = {name for name, _ in network.named_parameters() if name.startswith(("decoder.1", "head"))}
    given = {name for name, _ in network.named_parameters()} - fresh_names
    LoRA(rank=2).build(network, {"decoder.1", "head"})
    known = {name for name, _ in network.named_parameters() if is_given(name, fresh_names)}
    assert {name.replace("parametrizations.weight.original", "weight") for name in known} == given
    assert len(known) == len(given)
