"""Fits under L2-SP, DELTA, stochastic norm, EMA and Auto-RGN: what they do, and that a resumed run agrees."""

from functools import partial
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_atlas.adaptation import DELTA, EMA, L2SP, AutoRGN, FrozenEncoder, HeadsFirst, LoRA, StochasticNorm
from lightning_atlas.adaptation.statistics import reestimate_statistics
from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import TransferLearning
from lightning_atlas.networks import as_network
from lightning_atlas.tasks import Segmentation

SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.AdamW, lr=1e-2)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU())
        self.last = nn.Conv3d(4, 2, 1)

    def forward(self, image):
        return self.last(self.second(self.first(image)))


def module(*adaptations: Any, optimizer: Any = ADAM, **settings: Any) -> Any:
    lightning.seed_everything(1)
    network: Any = as_network(Small(), encoder=["first"], decoder=["second"], head=["last"])
    task = Segmentation(SlidingWindow(patch=(16, 16, 16), overlap=0.0))
    return TransferLearning(network, task, optimizer, adaptation=list(adaptations), **settings)


def trainer(*callbacks: lightning.Callback, **settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    fixed = {"enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks)}
    return lightning.Trainer(**{**quiet, **fixed, "max_epochs": 1, "callbacks": list(callbacks), **settings})


class Whole:
    """Four batches an epoch; an epoch that goes on begins where it was left."""

    def __init__(self, data: Any, make: Any) -> None:
        self.data, self.make = data, make

    def __len__(self):
        return 4

    def __iter__(self):
        done = self.data.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return iter([self.make(number, cases=2) for number in range(done % 4, 4)])


@pytest.fixture
def data(toy_data, toy_batch):
    def make(classes=("liver", "spleen")):
        made = toy_data(Contract(classes=classes))
        made.train_dataloader = lambda: Whole(made, toy_batch)
        return made

    return make


@pytest.fixture
def weights(data, tmp_path):
    """Give a file of weights whose head fits no other classes."""
    source = module(optimizer=partial(torch.optim.AdamW, lr=3e-2))
    fit = trainer(limit_val_batches=0)
    fit.fit(source, datamodule=data(("kidney", "aorta")))
    fit.save_checkpoint(tmp_path / "source.ckpt")
    return str(tmp_path / "source.ckpt")


@pytest.fixture
def encoder_weights(weights, tmp_path):
    """Give a file of the first stage alone."""
    state = torch.load(weights, weights_only=True)["state_dict"]
    names = {key.removeprefix("network."): each for key, each in state.items() if key.startswith("network.first.")}
    torch.save(names, tmp_path / "encoder.pt")
    return str(tmp_path / "encoder.pt")


class SaveAt(lightning.Callback):
    """Save when so many steps are done, and stop."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


class RawWeights(lightning.Callback):
    """Copy the state as it trains, at the end of the last step."""

    def on_train_batch_end(self, trainer, pl_module: Any, outputs, batch, batch_idx):
        self.state = {name: each.clone() for name, each in pl_module.network.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


ARMS = {
    "L2SP": lambda: [L2SP(alpha=0.5, beta=0.5)],
    "DELTA": lambda: [DELTA(weight=1.0, attention_batches=3)],
    "DELTA after the head": lambda: [HeadsFirst(0.25), DELTA(weight=1.0, attention_batches=1, attention_after=0.5)],
    "StochasticNorm": lambda: [StochasticNorm()],
    "EMA": lambda: [EMA(0.5, statistics_batches=2)],
    "AutoRGN": lambda: [AutoRGN(batches=3)],
    "AutoRGN, EMA, L2SP": lambda: [AutoRGN(batches=1), EMA(0.5, statistics_batches=1), L2SP()],
}


@pytest.mark.parametrize("step", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("arm", ARMS)
def test_a_resumed_run_ends_as_the_whole_one_bit_by_bit(arm, step, data, weights, tmp_path):
    run = partial(trainer, max_epochs=2, limit_val_batches=0)
    whole, whole_raw = module(*ARMS[arm](), weights=weights), RawWeights()
    run(whole_raw).fit(whole, datamodule=data())
    path = tmp_path / "half.ckpt"
    run(SaveAt(step, path)).fit(module(*ARMS[arm](), weights=weights), datamodule=data())
    rest, rest_raw = module(*ARMS[arm](), weights=weights), RawWeights()
    run(rest_raw).fit(rest, datamodule=data(), ckpt_path=path)
    assert same(rest_raw.state, whole_raw.state)
    assert same(rest.network.state_dict(), whole.network.state_dict())
    without = module(weights=weights)
    run().fit(without, datamodule=data())
    assert not same(without.network.state_dict(), whole.network.state_dict())


def test_a_stage_that_is_frozen_is_that_of_the_source_also_after_a_resume(data, weights, tmp_path):
    def fit(*callbacks, **settings):
        run = module(FrozenEncoder(), weights=weights)
        trainer(*callbacks, max_epochs=2).fit(run, datamodule=data(), **settings)
        return run.network.state_dict()

    first, rest = fit(SaveAt(3, tmp_path / "half.ckpt")), fit(ckpt_path=tmp_path / "half.ckpt")
    source = torch.load(weights, weights_only=True)["state_dict"]
    frozen = {name for name in rest if name.startswith("first.")}
    assert {"first.0.weight", "first.1.running_var", "first.1.num_batches_tracked"} <= frozen
    assert [name for name in frozen if not torch.equal(rest[name], source[f"network.{name}"])] == []
    assert int(rest["second.1.num_batches_tracked"]) == int(first["second.1.num_batches_tracked"]) + 5


# L2-SP


class PenaltyInTheLoss(TransferLearning):
    """The published form: alpha / 2 * |w - w0|^2 + beta / 2 * |w|^2 in the loss."""

    def training_step(self, batch, batch_idx):
        if not hasattr(self, "starts"):
            self.starts = {name: each.detach().clone() for name, each in self.network.named_parameters()}
        loss = super().training_step(batch, batch_idx)
        for name, each in self.network.named_parameters():
            given = name not in ("last.weight", "last.bias")
            start = self.starts[name] if given else torch.zeros_like(each)
            loss = loss + (0.3 if given else 0.2) / 2 * (each - start).square().sum()
        return loss


def test_l2_sp_is_the_penalty_in_the_loss_clipping_included(data, weights):
    ours = module(L2SP(0.3, 0.2), optimizer=partial(SGD, weight_decay=0.7), weights=weights)
    theirs: Any = module(optimizer=SGD, weights=weights)
    theirs.__class__ = PenaltyInTheLoss
    for run in (ours, theirs):
        trainer(max_epochs=3, gradient_clip_val=0.5, limit_val_batches=0).fit(run, datamodule=data())
    torch.testing.assert_close(ours.network.state_dict(), theirs.network.state_dict(), rtol=1e-4, atol=1e-5)
    assert float((ours.network.first[0].weight.detach() - ours.anchor["first.0.weight"]).norm()) > 1e-2


def test_l2_sp_with_a_strong_pull_ends_at_the_source_and_without_source_says_so(data, weights, capsys):
    far = module(optimizer=SGD, weights=weights)
    near = module(L2SP(alpha=9.0, beta=0.0), optimizer=SGD, weights=weights)
    alone = module(L2SP(beta=0.25), optimizer=SGD)
    for run in (far, near, alone):
        trainer(max_epochs=3, limit_val_batches=0).fit(run, datamodule=data())
    start = near.anchor["second.0.weight"]
    distances = [float((run.network.second[0].weight.detach() - start).norm()) for run in (near, far)]
    assert distances[0] < distances[1] / 4
    assert (
        "caution: L2SP has no source weights to draw towards: it is a weight decay of 0.25" in capsys.readouterr().out
    )


def test_l2_sp_draws_fresh_stages_and_the_matrices_of_lora_to_zero(data, encoder_weights):
    run = module(LoRA(rank=2), L2SP(), weights=encoder_weights)
    trainer(limit_val_batches=0).fit(run, datamodule=data())
    assert {"second.0.parametrizations.weight.original", "first.0.parametrizations.weight.0.A"} <= {
        name for name, each in run.network.named_parameters() if each.requires_grad
    }
    assert run.anchor == {}


# DELTA


def test_delta_keeps_features_near_the_source_and_is_no_part_of_the_state(data, weights, toy_batch):
    image = toy_batch(7)["image"]
    delta: Any = DELTA(weight=30.0, attention_batches=0)
    far, near = module(weights=weights), module(delta, weights=weights)
    for run in (far, near):
        trainer(max_epochs=4, limit_val_batches=0).fit(run, datamodule=data())
    bodies = [nn.Sequential(each.first, each.second).eval() for each in (far.network, near.network, delta.source)]
    with torch.no_grad():
        without, held, source = (body(image) for body in bodies)
    assert (held - source).square().mean() < (without - source).square().mean() / 2
    assert [*near.state_dict()] == [*far.state_dict()]
    assert not any(each._forward_hooks for each in near.network.modules())


class Losses(lightning.Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx):
        self.found.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_deltas_penalty_is_logged_and_is_zero_while_the_body_rests(data, weights):
    losses = Losses()
    run = module(HeadsFirst(0.5), DELTA(attention_batches=1), optimizer=SGD, weights=weights)
    trainer(losses, limit_val_batches=0).fit(run, datamodule=data())
    assert "train/delta" in losses.found[2]
    assert losses.found[1]["train/delta"] == pytest.approx(0.0, abs=1e-10)
    assert losses.found[3]["train/delta"] > 0


def test_attention_is_measured_under_the_head_as_trained_and_the_body_of_the_source(data, weights, toy_batch):
    delta = DELTA(attention_batches=1, attention_after=0.5)
    run = module(delta, optimizer=SGD, weights=weights)
    heads: list[Any] = []

    class Head(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module: Any, batch, batch_idx):
            heads.append(pl_module.network.last.weight.detach().clone())

    trainer(Head(), limit_val_batches=0).fit(run, datamodule=data())
    source: Any = delta.source
    assert torch.equal(source.last.weight, heads[2])
    assert torch.equal(source.first[0].weight, run.anchor["first.0.weight"])
    batch, losses = toy_batch(2), []
    with torch.no_grad():
        for channel in (None, 0, 1, 2, 3):
            features = source.first(batch["image"])
            features = features if channel is None else features * (torch.arange(4) != channel)[:, None, None, None]
            losses.append(float(run.task.loss(source.last(source.second(features)), batch)["loss"]))
    increases = torch.tensor(losses[1:]) - losses[0]
    expected = ((increases - increases.mean()) / increases.std(correction=0) / 5).softmax(0)
    torch.testing.assert_close(delta.attention["first"], expected, rtol=1e-3, atol=1e-3)


def test_delta_judges_its_source_by_fresh_stages_that_a_later_lora_has_renamed(data, encoder_weights):
    delta: Any = DELTA(attention_batches=1, attention_after=0.5)
    run = module(delta, LoRA(rank=2), optimizer=SGD, weights=encoder_weights)
    seconds: list[Any] = []

    class Second(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module: Any, batch, batch_idx):
            seconds.append(pl_module.network.second[0].weight.detach().clone())

    trainer(Second(), limit_val_batches=0).fit(run, datamodule=data())
    assert torch.equal(delta.source.second[0].weight, seconds[2])
    assert not torch.equal(seconds[2], seconds[0])


# EMA


def test_the_average_is_scored_and_saved_and_training_goes_on_from_the_weights(data, weights, tmp_path):
    class Follow(lightning.Callback):
        """Average by hand, and look at what validation sees."""

        def on_train_start(self, trainer, pl_module: Any):
            self.average = pl_module.network.first[0].weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module: Any, outputs, batch, batch_idx):
            decay = min(0.5, (1 + trainer.global_step) / (10 + trainer.global_step))
            self.raw = pl_module.network.first[0].weight.detach().clone()
            self.average = decay * self.average + (1 - decay) * self.raw

        def on_validation_batch_start(self, trainer, pl_module: Any, batch, batch_idx, dataloader_idx=0):
            self.scored = pl_module.network.first[0].weight.detach().clone()

        def on_train_epoch_start(self, trainer, pl_module: Any):
            self.at_start = pl_module.network.first[0].weight.detach().clone()

    follow, save = Follow(), ModelCheckpoint(tmp_path, filename="kept")
    run = module(EMA(0.5), weights=weights)
    fit = trainer(follow, save, max_epochs=2, num_sanity_val_steps=0)
    fit.fit(run, datamodule=data())
    torch.testing.assert_close(follow.scored, follow.average)
    assert not torch.equal(follow.at_start, follow.average)
    kept = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    torch.testing.assert_close(kept["state_dict"]["network.first.0.weight"], follow.average)
    assert torch.equal(kept["raw_weights"]["first.0.weight"], follow.raw)
    torch.testing.assert_close(run.network.first[0].weight.detach(), follow.average)
    other = module(EMA(0.5))
    fit.test(other, datamodule=data(), ckpt_path=tmp_path / "kept.ckpt")
    assert same(other.network.state_dict(), run.network.state_dict())


def test_the_averages_statistics_are_those_of_the_last_training_patches(data, weights, toy_batch):
    run = module(EMA(0.9, statistics_batches=2), weights=weights)
    trainer().fit(run, datamodule=data())
    found = {name: each.clone() for name, each in run.network.state_dict().items()}
    reestimate_statistics(run.network, [toy_batch(number)["image"] for number in (2, 3)])
    for name in ("first.1.running_mean", "second.1.running_var"):
        torch.testing.assert_close(run.network.state_dict()[name], found[name])


def test_after_a_fit_the_average_stays_whatever_is_validated(data, weights):
    run = module(EMA(0.5), weights=weights)
    fit = trainer()
    fit.fit(run, datamodule=data())
    average = {name: each.clone() for name, each in run.network.state_dict().items()}
    fit.validate(run, datamodule=data(), verbose=False)
    assert same(run.network.state_dict(), average)


def test_ema_needs_whole_checkpoints(data, tmp_path):
    with pytest.raises(ValueError, match="save_weights_only: false"):
        trainer(ModelCheckpoint(tmp_path, save_weights_only=True)).fit(module(EMA()), datamodule=data())


# Auto-RGN


def test_each_tensor_has_its_share_of_the_rate_after_the_measured_steps(data, weights):
    ratios: list[dict[str, float]] = []
    rates: list[dict[str, float]] = []

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})

        def on_before_optimizer_step(self, trainer, pl_module: Any, optimizer):
            given = {n: p for n, p in pl_module.network.named_parameters() if p.grad is not None and "last" not in n}
            ratios.append({name: float(p.grad.norm() / p.detach().norm()) for name, p in given.items()})

    run = module(AutoRGN(batches=2), optimizer=SGD, weights=weights)
    trainer(Watch(), max_epochs=2, limit_val_batches=0, gradient_clip_val=1e-3).fit(run, datamodule=data())
    assert set(rates[0]) == {f"{part}.{own}" for part in ("first.0", "second.0", "last") for own in ("weight", "bias")}
    for first in (0, 4):
        mean = {name: (ratios[first][name] + ratios[first + 1][name]) / 2 for name in ratios[first]}
        for name, rate in rates[first + 2].items():
            expected = 0.1 * mean[name] / max(mean.values()) if name in mean else 0.1
            assert rate == pytest.approx(expected, rel=1e-4)
    assert set(rates[1].values()) == {0.1}
    assert rates[3] == rates[4] == rates[5] != rates[6]


# Stochastic norm


def test_a_trainer_that_replaces_the_layers_is_refused(data):
    run = module(StochasticNorm())
    undo = nn.SyncBatchNorm.convert_sync_batchnorm

    class Convert(lightning.Callback):
        def on_fit_start(self, trainer, pl_module: Any):
            pl_module.network = undo(pl_module.network)

    with pytest.raises(ValueError, match="sync_batchnorm: false"):
        trainer(Convert()).fit(run, datamodule=data())
