import math
from functools import partial
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from lightning_atlas.adaptation import CosineSchedule, FrozenEncoder, HeadOnly, LayerWiseDecay
from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import AtlasModule, SupervisedPretraining, TransferLearning
from lightning_atlas.networks import UNet, as_network
from lightning_atlas.networks.base import output_layer, stage_tensors
from lightning_atlas.tasks import Segmentation


def task():
    return Segmentation(SlidingWindow(patch=(16, 16, 16), overlap=0.0))


def trainer(**settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return lightning.Trainer(**{**quiet, "max_epochs": 1, "enable_checkpointing": False, **settings})


def module(kind: type[AtlasModule] = TransferLearning, **settings: Any) -> Any:
    lightning.seed_everything(1)
    return kind(UNet(features=(4, 8)), task(), partial(torch.optim.AdamW, lr=1e-2), **settings)


def copy_of(network, stage):
    return {name: value.clone() for name, value in stage_tensors(network, stage).items()}


class Batchy(nn.Module):
    """A network with everything that can drift while its weights stand still."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(0.5))
        self.last = nn.Conv3d(4, 2, 1)

    def forward(self, image):
        return self.last(self.body(image))


def test_frozen_stages_are_bit_identical_after_training_and_validation(toy_data):
    network: Any = as_network(Batchy(), encoder=["body"], decoder=[], head=["last"])
    run = TransferLearning(network, task(), partial(torch.optim.AdamW, lr=1e-2), adaptation=[FrozenEncoder()])
    body, _ = network.stages()
    before = copy_of(network, body)
    trainer(max_epochs=2).fit(run, datamodule=toy_data())
    after = copy_of(network, body)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "body.1.running_mean" in before
    assert all(p.grad is None for p in network.body.parameters())
    assert network.last.weight.shape[0] == len(("background", "liver", "spleen"))


@pytest.mark.parametrize("adaptation", [[], [HeadOnly()], [FrozenEncoder()], [LayerWiseDecay(0.5)]])
def test_each_trainable_parameter_is_in_one_group(adaptation, toy_data):
    run = module(adaptation=adaptation)
    fit = trainer()
    fit.fit(run, datamodule=toy_data())
    grouped = [id(p) for group in fit.optimizers[0].param_groups for p in group["params"]]
    moving = {id(p) for p in run.network.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == moving


def test_learning_rates_follow_schedule_times_decay(toy_data):
    run = module(adaptation=[LayerWiseDecay(0.5)], schedule=CosineSchedule(warmup=0.0))
    run.fresh = {"head"}
    fit = trainer()
    seen = []

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module: Any, batch, batch_idx):
            seen.append({g["name"]: g["lr"] for g in trainer.optimizers[0].param_groups})

    fit.callbacks.append(Watch())
    fit.fit(run, datamodule=toy_data())
    names = list(seen[2])
    expected = 1e-2 * run.schedule(2, 4)
    assert seen[2]["head"] == pytest.approx(expected)
    assert seen[2][names[-2]] == pytest.approx(seen[2][names[-3]] * 2)


def test_loss_falls_and_dice_rises(toy_data):
    run = module(SupervisedPretraining)
    start = trainer(max_epochs=1)
    start.fit(run, datamodule=toy_data())
    early = run.results["val"].mean
    trainer(max_epochs=15).fit(run, datamodule=toy_data())
    assert run.results["val"].mean > max(early, 0.8)


class StopAfterTwoEpochs(lightning.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def test_resume_continues_the_run_and_needs_no_source_weights(toy_data, tmp_path):
    whole = module()
    trainer(max_epochs=4).fit(whole, datamodule=toy_data())
    path = tmp_path / "half.ckpt"
    trainer(max_epochs=4, callbacks=[StopAfterTwoEpochs(path)]).fit(module(), datamodule=toy_data())
    rest = module(weights=str(tmp_path / "gone.safetensors"))
    trainer(max_epochs=4).fit(rest, datamodule=toy_data(), ckpt_path=path)
    torch.testing.assert_close(rest.network.state_dict(), whole.network.state_dict())


def test_missing_weights_stop_a_fresh_fit(toy_data, tmp_path):
    run = module(weights=str(tmp_path / "gone.safetensors"))
    with pytest.raises(FileNotFoundError, match="gone"):
        trainer().fit(run, datamodule=toy_data())


def test_weights_arrive_and_a_broken_contract_is_named(toy_data, tmp_path):
    data = toy_data(Contract(classes=("liver", "spleen"), modality="CT", spacing_mm=(3.0, 3.0, 3.0)))
    source = module(SupervisedPretraining)
    first = trainer()
    first.fit(source, datamodule=data)
    path = tmp_path / "source.ckpt"
    first.save_checkpoint(path)

    other = toy_data(Contract(classes=("spleen", "kidney"), modality="MR", spacing_mm=(3.0, 3.0, 3.0)))
    with pytest.raises(ValueError, match=r"source\.ckpt expect modality CT, not MR"):
        trainer().fit(module(weights=str(path)), datamodule=other)

    run = module(weights=str(path), allow=["modality"], adaptation=[HeadOnly()])
    trainer().fit(run, datamodule=other)
    for stage in run.network.stages():
        if stage.part != "head":
            ours, theirs = stage_tensors(run.network, stage), stage_tensors(source.network, stage)
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert run.allowed == ["modality: the weights expect CT, the data give MR"]


def test_test_needs_no_source_weights_and_repeats_the_numbers(toy_data, tmp_path):
    run = module()
    fit = trainer(max_epochs=3)
    fit.fit(run, datamodule=toy_data())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    again = module(weights=str(tmp_path / "gone.safetensors"))
    trainer().test(again, datamodule=toy_data(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    torch.testing.assert_close(again.results["test"].dice, run.results["val"].dice)


def test_a_checkpoint_alone_rebuilds_the_head(toy_data, tmp_path):
    run = module()
    fit = trainer()
    fit.fit(run, datamodule=toy_data())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    parts = {"network": UNet(features=(4, 8)), "task": task()}
    loaded: Any = TransferLearning.load_from_checkpoint(tmp_path / "last.ckpt", **parts)
    assert loaded.contract.classes == ("liver", "spleen")
    image = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(loaded.eval().network(image), run.eval().network(image))


def test_only_outputs_that_no_weights_gave_start_at_their_prior(toy_data, tmp_path):
    first, source = trainer(), module(SupervisedPretraining)
    first.fit(source, datamodule=toy_data(Contract(classes=("liver", "spleen"))))
    path = tmp_path / "source.ckpt"
    first.save_checkpoint(path)

    run = module(weights=str(path), head_prior=0.01)
    frozen = partial(torch.optim.SGD, lr=0.0)
    run.optimizer = frozen
    trainer().fit(run, datamodule=toy_data(Contract(classes=("spleen", "kidney"))))
    ours, theirs = (each.network.get_submodule(output_layer(each.network)).bias for each in (run, source))
    assert ours[:2].tolist() == theirs[[0, 2]].tolist()  # background and spleen
    assert ours[2].item() == pytest.approx(math.log(0.01))


def test_a_fresh_head_stays_as_drawn_for_classes_that_the_weights_know_and_a_resumed_run_keeps_it(toy_data, tmp_path):
    def fitted(length=1, resumed=None, **settings: Any):
        run, fit = module(**settings), trainer(max_epochs=length)
        run.optimizer = partial(torch.optim.SGD, lr=0.0)
        fit.fit(run, datamodule=toy_data(), ckpt_path=resumed)
        return run, fit

    first, source = trainer(), module(SupervisedPretraining)
    first.fit(source, datamodule=toy_data())
    first.save_checkpoint(tmp_path / "source.ckpt")
    start: Any = {"weights": str(tmp_path / "source.ckpt")}
    (taken, _), (fresh, fit), (scratch, _) = fitted(**start), fitted(**start, head="fresh"), fitted()
    assert torch.equal(taken.network.head.weight, source.network.head.weight)
    assert torch.equal(fresh.network.head.weight, scratch.network.head.weight)
    assert not torch.equal(fresh.network.head.weight, taken.network.head.weight)
    assert (taken.fresh, fresh.fresh) == (set(), {"head"})

    fit.save_checkpoint(tmp_path / "half.ckpt")
    rest, _ = fitted(2, tmp_path / "half.ckpt", **start, head="fresh")
    assert torch.equal(rest.network.head.weight, fresh.network.head.weight)
    assert rest.fresh == {"head"}
    assert rest.intake.fresh_names == fresh.intake.fresh_names == {"head.weight", "head.bias"}


def test_an_impossible_prior_stops_before_training(toy_data):
    with pytest.raises(ValueError, match="the prior has no share of spleen"):
        trainer().fit(module(head_prior={"liver": 0.1}), datamodule=toy_data())
