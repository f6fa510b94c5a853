"""What moves in a fit, when, and what a resumed one does."""

from functools import partial
from typing import Any

import lightning
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LRSchedulerCallable, ReduceLROnPlateau
from torch import nn
from torch.optim import lr_scheduler

from lightning_atlas.adaptation import (
    Adaptation,
    CosineSchedule,
    FullFineTuning,
    GradualThaw,
    HeadsFirst,
    LayerWiseDecay,
    NormOnly,
    PolynomialSchedule,
    Sawtooth,
    Schedule,
    SurgicalBlock,
)
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import TransferLearning
from lightning_atlas.networks import as_network
from lightning_atlas.networks.base import stage_tensors
from lightning_atlas.tasks import Segmentation


class Batchy(nn.Module):
    """A network with all that can drift: statistics, counters, dropout."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(0.5), nn.ReLU())
        self.second = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU())
        self.last = nn.Conv3d(4, 2, 1)

    def forward(self, image):
        return self.last(self.second(self.first(image)))


ADAM = partial(torch.optim.AdamW, lr=1e-2)
MOMENTUM = partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=0.1)


def module(*adaptations: Adaptation, optimizer: Any = ADAM, fresh: Any = ("last",), **settings: Any) -> Any:
    lightning.seed_everything(1)
    network: Any = as_network(Batchy(), encoder=["first"], decoder=["second"], head=["last"])
    task = Segmentation(SlidingWindow(patch=(16, 16, 16), overlap=0.0))
    run = TransferLearning(network, task, optimizer, adaptation=list(adaptations), **settings)
    run.fresh = set(fresh)
    return run


def trainer(*callbacks: lightning.Callback, epochs: int = 2, **settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    fixed = {"enable_checkpointing": False, "callbacks": list(callbacks)}
    return lightning.Trainer(**{**quiet, **fixed, "max_epochs": epochs, **settings})


class EachStep(lightning.Callback):
    """Keep a copy of each stage, and the modes, before each step."""

    def __init__(self):
        self.stages, self.modes = [], []

    def on_train_batch_start(self, trainer, pl_module: Any, batch, batch_idx):
        self.stages.append(
            {
                stage.name: {name: each.clone() for name, each in stage_tensors(pl_module.network, stage).items()}
                for stage in pl_module.network.stages()
            }
        )

    def on_before_backward(self, trainer, pl_module: Any, loss):
        self.modes.append({name: getattr(pl_module.network, name).training for name in ("first", "second", "last")})


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_stage_at_rest_is_bit_identical_and_in_evaluation_until_its_step(toy_data):
    watch = EachStep()
    trainer(watch).fit(module(HeadsFirst(3 / 8)), datamodule=toy_data())
    for name in ("first", "second"):
        assert all(same(watch.stages[0][name], watch.stages[step][name]) for step in (1, 2, 3))
        assert not any(same(watch.stages[step][name], watch.stages[step + 1][name]) for step in (3, 4, 5, 6))
    assert [modes["first"] for modes in watch.modes] == [False] * 3 + [True] * 5
    assert all(modes["last"] for modes in watch.modes)
    assert not same(watch.stages[0]["last"], watch.stages[1]["last"])


@pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM, partial(torch.optim.Adagrad, lr=1e-2)])
def test_what_begins_to_move_knows_nothing_of_gradients_at_rest(optimizer, toy_data):
    """The first step of a stage that wakes is that of an optimizer made at this moment."""

    class Compare(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module: Any, batch, batch_idx):
            self.before = [p.detach().clone() for p in pl_module.network.first.parameters()]

        def on_train_batch_end(self, trainer, pl_module: Any, outputs, batch, batch_idx):
            if batch_idx == 3:
                now = list(pl_module.network.first.parameters())
                copies = [nn.Parameter(each) for each in self.before]
                for copy, parameter in zip(copies, now, strict=True):
                    copy.grad = parameter.grad.clone()
                optimizer(copies).step()
                self.same = all(torch.equal(p, copy) for p, copy in zip(now, copies, strict=True))

    compare = Compare()
    run = module(HeadsFirst(3 / 4), optimizer=optimizer)
    trainer(compare, epochs=1).fit(run, datamodule=toy_data())
    assert compare.same


def test_clipping_sees_only_what_moves(toy_data):
    """With the body at rest, clipping by norm is that of the head's gradient alone."""

    class Norms(lightning.Callback):
        def __init__(self):
            self.found = []

        def on_train_batch_end(self, trainer, pl_module: Any, outputs, batch, batch_idx):
            norms = {
                name: torch.stack([p.grad.norm() for p in getattr(pl_module.network, name).parameters()]).norm().item()
                for name in ("first", "second", "last")
            }
            self.found.append(norms)

    norms = Norms()
    trainer(norms, gradient_clip_val=1e-3).fit(module(HeadsFirst(0.5)), datamodule=toy_data())
    for found in norms.found[:4]:
        assert found["first"] == found["second"] == 0.0
        assert found["last"] == pytest.approx(1e-3, rel=1e-3)
    assert all(found["first"] > 0 for found in norms.found[4:])


class SeedEachStep(lightning.Callback):
    """Draw the same dropout at a step, whatever came before."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(trainer.global_step)


class StopAfter(lightning.Callback):
    def __init__(self, epochs, path):
        self.epochs, self.path = epochs, path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epochs - 1:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


ONE_CYCLE = partial(lr_scheduler.OneCycleLR, max_lr=1e-2, total_steps=17)


@pytest.mark.parametrize(
    ("adaptations", "schedule"),
    [
        ([HeadsFirst(6 / 16)], None),
        ([GradualThaw(0.75), LayerWiseDecay(0.5)], PolynomialSchedule()),
        ([Sawtooth(0.5, 0.2)], None),
        ([NormOnly()], None),
        ([HeadsFirst(6 / 16)], ONE_CYCLE),
    ],
    ids=["heads first", "thaw and decay", "sawtooth", "norms", "a scheduler of torch"],
)
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_run_is_bit_identical_to_one_in_a_single_go(epochs, adaptations, schedule, toy_data, tmp_path):
    def fit(*callbacks, **settings):
        run = module(*adaptations, schedule=schedule)
        trainer(SeedEachStep(), *callbacks, epochs=4).fit(run, datamodule=toy_data(), **settings)
        return run.network.state_dict()

    whole = fit()
    fit(StopAfter(epochs, tmp_path / "half.ckpt"))
    rest = fit(ckpt_path=tmp_path / "half.ckpt")
    assert [name for name, value in whole.items() if not torch.equal(value, rest[name])] == []


def test_a_longer_run_never_rests_again_what_moved(toy_data, tmp_path, capsys):
    trainer(StopAfter(3, tmp_path / "half.ckpt"), epochs=4).fit(module(HeadsFirst(0.5)), datamodule=toy_data())
    on = {"datamodule": toy_data(), "ckpt_path": tmp_path / "half.ckpt"}
    trainer(epochs=5).fit(module(HeadsFirst(0.5)), **on)
    assert "planned for 16 steps, now 20: rates follow the new length" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"planned for 16 steps, .* have 32: .* first, second would rest again"):
        trainer(epochs=8).fit(module(HeadsFirst(0.5)), **on)


def test_a_checkpoint_of_a_validation_knows_what_its_schedule_was_told(toy_data, tmp_path):
    schedule = partial(
        ReduceLROnPlateau, monitor="val/dice", mode="max", patience=0, threshold=10.0, threshold_mode="abs"
    )
    saving = ModelCheckpoint(
        tmp_path, filename="{step}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=False
    )
    run = module(FullFineTuning(), schedule=schedule)
    trainer(saving, epochs=3, val_check_interval=2, enable_checkpointing=True).fit(run, datamodule=toy_data())
    rates = []
    for step in (2, 4, 6):  # the first validation sets the mark, and each further one is no better by 10
        kept = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        rates.append(kept["lr_schedulers"][0]["stand_in"]["group"]["lr"])
    assert rates == pytest.approx([1e-2, 1e-3, 1e-4])


def test_a_resumed_run_freezes_by_what_was_fresh_though_the_weights_are_gone(toy_data, tmp_path):
    adaptation = SurgicalBlock("first")
    run = module(adaptation, fresh=["second", "last"])
    trainer(StopAfter(1, tmp_path / "half.ckpt")).fit(run, datamodule=toy_data())
    again = module(adaptation, fresh=["last"], weights=str(tmp_path / "gone.safetensors"))
    trainer().fit(again, datamodule=toy_data(), ckpt_path=tmp_path / "half.ckpt")
    assert again.plan.frozen == run.plan.frozen == set()
    assert all(parameter.requires_grad for parameter in again.network.parameters())


class Pull(Adaptation):
    needs_anchor = True


@pytest.fixture
def source(toy_data, tmp_path):
    """Write the weights of a short run."""

    def write(name, steps):
        run = module(FullFineTuning())
        fit = trainer(epochs=1, max_steps=steps)
        fit.fit(run, datamodule=toy_data())
        fit.save_checkpoint(tmp_path / name)
        return str(tmp_path / name)

    return write


def test_anchors_are_what_the_weights_gave_also_where_a_run_resumes(source, toy_data, tmp_path):
    weights = source("source.ckpt", 1)
    first = module(Pull(), weights=weights)
    trainer(StopAfter(1, tmp_path / "half.ckpt")).fit(first, datamodule=toy_data())
    given = torch.load(weights, weights_only=True)["state_dict"]
    assert first.anchor.keys() == dict(first.network.named_parameters()).keys()
    assert all(torch.equal(value, given[f"network.{name}"]) for name, value in first.anchor.items())
    again = module(Pull(), weights=weights)
    trainer().fit(again, datamodule=toy_data(), ckpt_path=tmp_path / "half.ckpt")
    torch.testing.assert_close(again.anchor, first.anchor, rtol=0, atol=0)

    other = module(Pull(), weights=source("other.ckpt", 2))
    with pytest.raises(ValueError, match=r"the run began from .*source\.ckpt with hash"):
        trainer().fit(other, datamodule=toy_data(), ckpt_path=tmp_path / "half.ckpt")
    without = module(Pull())
    with pytest.raises(ValueError, match=r"goes on from random weights: .* give these in model\.init_args\.weights"):
        trainer().fit(without, datamodule=toy_data(), ckpt_path=tmp_path / "half.ckpt")
    gone = module(Pull(), weights=str(tmp_path / "gone.ckpt"))
    with pytest.raises(FileNotFoundError, match="gone"):
        trainer().fit(gone, datamodule=toy_data(), ckpt_path=tmp_path / "half.ckpt")


def test_a_run_from_random_weights_does_not_go_on_from_others(source, toy_data, tmp_path):
    trainer(StopAfter(1, tmp_path / "half.ckpt")).fit(module(Pull()), datamodule=toy_data())
    trainer().fit(module(Pull()), datamodule=toy_data(), ckpt_path=tmp_path / "half.ckpt")
    named = module(Pull(), weights=source("source.ckpt", 1))
    with pytest.raises(ValueError, match=r"began from random weights, and goes on from .*source\.ckpt with hash"):
        trainer().fit(named, datamodule=toy_data(), ckpt_path=tmp_path / "half.ckpt")


def test_a_penalty_is_a_term_of_the_loss_and_logged(toy_data):
    class Small(Adaptation):
        def penalty(self, network, image):
            return {"size": 3.0 * torch.stack([p.square().sum() for p in network.parameters()]).sum()}

    run = module(Small(), optimizer=partial(torch.optim.SGD, lr=0.0))
    fit = trainer(epochs=1, max_steps=1)
    fit.fit(run, datamodule=toy_data())
    told = fit.callback_metrics
    size = 3.0 * sum(float(p.detach().square().sum()) for p in run.network.parameters())
    assert float(told["train/size"]) == pytest.approx(size, rel=1e-4)
    terms = float(told["train/dice"]) + float(told["train/cross_entropy"])
    assert float(told["train/loss"]) == pytest.approx(terms + size, rel=1e-4)


def test_a_scheduler_of_torch_is_a_schedule_in_a_recipe():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--schedule", type=Schedule | LRSchedulerCallable | None)

    def build(text):
        return parser.instantiate(parser.parse_args(["--schedule", text])).schedule

    torchs = "{class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 3}}"
    assert build(torchs)(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)).step_size == 3
    assert build("{class_path: CosineSchedule, init_args: {warmup: 0.5}}") == CosineSchedule(warmup=0.5)
