"""An average of weights in half precision; fits under EMA are in `tests/modules/test_regularised.py`."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning
import pytest
import torch
from torch import nn

from lightning_atlas.adaptation.ema import Averaging

STEPS = 10_000, 10_100
"""Late enough in a run for the decay itself."""


def begun(network: nn.Module, checkpoint: Any = None, step: int = STEPS[0]) -> tuple[Averaging, tuple[Any, Any]]:
    """Return an average that has begun, and the trainer and the module that its hooks take."""
    run, module, averaging = Mock(spec=lightning.Trainer), lightning.LightningModule(), Averaging(0.999, 2)
    run.checkpoint_callbacks, run.global_step, run.state = [], step, SimpleNamespace(fn="fit")
    module.network = network
    if checkpoint is not None:
        averaging.on_load_checkpoint(run, module, checkpoint)
    averaging.on_train_start(run, module)
    return averaging, (run, module)


def moved(dtype: torch.dtype) -> tuple[nn.Linear, Averaging, tuple[Any, Any]]:
    """Average weights that were 1 and are 2 in each of 100 steps."""
    network = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.ones_(network.weight)
    averaging, hooks = begun(network)
    nn.init.constant_(network.weight, 2.0)
    for hooks[0].global_step in range(STEPS[0] + 1, STEPS[1] + 1):
        averaging.on_train_batch_end(*hooks, None, None, 0)
    return network, averaging, hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_average_moves_by_less_than_half_precision_can_tell(dtype):
    network, averaging, hooks = moved(dtype)
    assert averaging.average["weight"].item() == pytest.approx(2 - 0.999**100, rel=1e-5)
    averaging.on_train_end(*hooks)
    assert network.weight.dtype == dtype
    assert network.weight.item() == averaging.average["weight"].to(dtype).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_checkpoint_keeps_it_unrounded(dtype):
    network, averaging, hooks = moved(dtype)
    checkpoint = {"state_dict": {"network.weight": network.weight.detach()}}
    averaging.on_save_checkpoint(*hooks, checkpoint)
    assert ("average_weights" in checkpoint) == (dtype == torch.bfloat16)
    assert checkpoint["state_dict"]["network.weight"].dtype == dtype
    again = nn.Linear(1, 1, bias=False).to(dtype)
    again.load_state_dict({"weight": checkpoint["state_dict"]["network.weight"]})
    resumed, _ = begun(again, checkpoint, STEPS[1])
    assert torch.equal(resumed.average["weight"], averaging.average["weight"])
    assert again.weight.item() == 2.0
