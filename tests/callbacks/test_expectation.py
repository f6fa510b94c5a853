import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from batch_boxes import boxes_of
from lightning.pytorch import Callback
from torch import nn

from lightning_atlas.callbacks.expectation import (
    Expectation,
    SavedBytes,
    duration,
    measure_step,
    missing_state_bytes,
    noise_batch,
    optimizer_moments,
)
from lightning_atlas.contract import Contract


def traces(module):
    """Return all that a measurement might disturb (but Python's generator, from which beartype itself draws)."""
    state = [value.clone() for value in module.state_dict().values()]
    gradients = [None if each.grad is None else each.grad.clone() for each in module.parameters()]
    modes = [each.training for each in module.modules()]
    return [*state, *gradients, *modes, torch.get_rng_state(), pickle.dumps(np.random.get_state())]  # noqa: NPY002


def equal(before, after):
    pairs = zip(before, after, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("with_gradients", [False, True])
def test_the_trial_step_leaves_no_trace(with_gradients, module, make_trainer):
    module.network[3].weight.requires_grad_(False)
    module.network[1].eval()
    if with_gradients:
        module.network(torch.randn(1, 1, 8, 8, 8)).sum().backward()
    held = [each.grad for each in module.parameters()]
    trainer = make_trainer()
    before = traces(module)
    measure_step(trainer, module, (2, 1, 8, 8, 8))
    assert equal(before, traces(module))
    assert all(old is each.grad for old, each in zip(held, module.parameters(), strict=True))


def test_a_network_with_several_outputs_is_tried_with_its_own_loss(module, make_trainer, monkeypatch):
    class Deep(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, image):
            logits = self.body(image)
            return [logits, nn.functional.max_pool3d(logits, 2)]

    seen = []

    def loss(logits, batch):
        seen.append([each.shape[2:] for each in logits])
        return {"loss": sum(each.mean() for each in logits)}

    monkeypatch.setattr(module, "network", Deep(module.network))
    monkeypatch.setattr(module.task, "loss", loss)
    assert measure_step(make_trainer(), module, (2, 1, 8, 8, 8)).activations > 0
    assert set(map(tuple, seen)) == {((8, 8, 8), (4, 4, 4))}


def test_a_run_learns_the_same_with_and_without_it(module, data, make_trainer):
    weights = []
    for each, callbacks in ((deepcopy(module), []), (module, [Expectation()])):
        torch.manual_seed(0)
        make_trainer(*callbacks, enable_progress_bar=False).fit(each, data)
        weights.append(each.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_saved_bytes_are_those_of_a_layer_done_by_hand():
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1, bias=False), nn.Sigmoid(), nn.Conv3d(4, 2, 1))
    saved = SavedBytes(network)
    image = torch.randn(2, 1, 8, 8, 8)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        network(image).sum()
    # The first convolution keeps the image, the sigmoid its result, which the last convolution shares.
    assert saved.total == (2 * 8**3 + 2 * 4 * 8**3) * 4


@pytest.mark.parametrize(
    ("name", "options", "moments"),
    [
        ("AdamW", {}, 2),
        ("Adam", {"amsgrad": True}, 3),
        ("SGD", {}, 0),
        ("SGD", {"momentum": 0.9}, 1),
        ("RMSprop", {"momentum": 0.9, "centered": True}, 3),
        ("Adagrad", {}, 1),
        ("RAdam", {}, 2),
        ("Adadelta", {}, 2),
        ("Rprop", {}, 2),
    ],
)
def test_optimizer_state_is_what_a_step_really_adds(name, options, moments):
    network = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 5))
    network[1].requires_grad_(False)
    optimizer = getattr(torch.optim, name)(network.parameters(), lr=0.1, **options)
    assert optimizer_moments(optimizer) == moments
    if not optimizer.state:  # Adagrad makes its state at once
        assert missing_state_bytes(optimizer) == moments * 110 * 4
    network(torch.randn(3, 10)).sum().backward()
    optimizer.step()
    states = [optimizer.state[each] for each in network[0].parameters()]
    tensors = [value for state in states for value in state.values() if torch.is_tensor(value)]
    assert sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1) == moments * 110 * 4
    if moments:
        assert missing_state_bytes(optimizer) == 0


def test_memory_and_time_are_said_before_the_first_step(module, data, make_trainer, capsys):
    class FirstStep(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            print("the first step")

    expectation = Expectation()
    make_trainer(expectation, FirstStep(), num_sanity_val_steps=1, enable_progress_bar=False).fit(module, data)
    said = capsys.readouterr().out.split("the first step")[0].strip().splitlines()
    assert len(said) <= 4
    memory, duration = said
    assert memory.startswith("expected memory")
    assert "2x1x8x8x8" in memory
    assert "AdamW" in memory
    assert duration.startswith("expected time")
    assert "6 passes" in duration
    assert "3 validations of 4" in duration
    assert expectation.seconds is not None
    assert expectation.bytes_per_voxel is not None


def test_a_data_module_without_patches_is_left_alone(module, data, make_trainer, capsys):
    del data.patches
    make_trainer(Expectation(), enable_progress_bar=False).fit(module, data)
    assert "expected" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.2, "3 s"), (59.7, "1 min 0 s"), (190, "3 min 10 s"), (7500, "2 h 5 min")]
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_where_boxes_are_learned_the_noise_has_some_and_their_loss_is_passed_through(module, make_trainer):
    module.contract = Contract(classes=("liver",), predicts="boxes")
    batch = noise_batch((2, 1, 8, 8, 4), module, torch.device("cpu"))
    assert [each.corners.tolist() for each in boxes_of(batch)] == [[[2.0, 2.0, 1.0, 6.0, 6.0, 3.0]]] * 2
    asked = []

    class Boxed(nn.Module):
        def answer(self, network, batch):
            asked.append(len(batch["boxes"]))
            return network(batch["image"])

        def loss(self, answer, batch):
            return {"loss": answer.mean()}

    module.task = Boxed()
    measure_step(make_trainer(), module, (2, 1, 8, 8, 4))
    assert asked == [2, 2]
