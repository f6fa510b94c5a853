"""Layer-wise decay on plain ResNets and ViTs gives the rates that timm gives, which are recorded beside this test."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_atlas.adaptation import LayerWiseDecay
from lightning_atlas.adaptation.plan import AdaptationPlan
from lightning_atlas.adaptation.schedules import ConstantSchedule
from lightning_atlas.networks import Network, Stage

RECORDED = json.loads(Path(__file__).with_name("timm_layer_decay.json").read_text(encoding="utf-8"))["models"]
models = pytest.mark.parametrize("name", RECORDED)
PARAMETERS = ("cls_token", "pos_embed")


class StandIn(Network):
    """The names of a network of timm, each a small layer; a stage is a block, as a user would write them down."""

    def __init__(self, layers: list[list[str]]) -> None:
        super().__init__()
        for name in (name for layer in layers for name in layer):
            parent: nn.Module = self
            for part in name.split(".")[:-1]:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            new = nn.Parameter(torch.zeros(1)) if name in PARAMETERS else nn.Linear(1, 1)
            setattr(parent, name.rpartition(".")[2], new)
        self.layers = layers

    def stages(self) -> list[Stage]:
        *body, head = [tuple(layer) for layer in self.layers]
        named = [Stage(f"block.{number}", "encoder", names) for number, names in enumerate(body)]
        return [*named, Stage("head", "head", head)]


def rates(recorded: dict[str, Any], fresh: set[str], peak: float = 2e-3) -> dict[str, float]:
    """Return the learning rate of each parameter, as the optimizer has it at the first step."""
    network = StandIn(recorded["layers"])
    plan = AdaptationPlan([LayerWiseDecay(recorded["decay"])], network, fresh, 100)
    plan.freeze()
    make = partial(torch.optim.AdamW, lr=peak)
    optimizer = make(plan.parameter_groups())
    plan.follow(optimizer, make, ConstantSchedule())
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(each)]: group["lr"] for group in optimizer.param_groups for each in group["params"]}


def expected(layers: list[list[str]], scale: list[float], peak: float = 2e-3) -> dict[str, float]:
    kinds = {name: ("",) if name in PARAMETERS else (".weight", ".bias") for layer in layers for name in layer}
    scaled = zip(layers, scale, strict=True)
    return {name + kind: peak * share for layer, share in scaled for name in layer for kind in kinds[name]}


@models
def test_with_every_layer_from_weights_the_rates_are_timms(name):
    recorded = RECORDED[name]
    assert rates(recorded, set()) == pytest.approx(expected(recorded["layers"], recorded["scale"]), rel=1e-8)


@models
def test_with_a_fresh_head_they_are_those_of_timms_network_without_one(name):
    # A fresh stage is no step down: the last block has the full rate, as in timm where the head has no parameters.
    recorded = RECORDED[name]
    assert rates(recorded, {"head"}) == pytest.approx(expected(recorded["layers"], [*recorded["headless"], 1.0]))


def test_the_record_is_of_the_published_depths():
    depths = {name: len(each["layers"]) for name, each in RECORDED.items()}
    assert depths["resnet18"] == 1 + 8 + 1
    assert depths["resnet50"] == 1 + 16 + 1
    assert depths["vit_base_patch16_224"] == 1 + 12 + 1
    assert RECORDED["vit_base_patch16_224"]["layers"][12] == ["blocks.11", "norm"]
