"""A run of so many steps, whatever the number of cases; an epoch is then only how often the patches turn over."""

from functools import partial
from typing import Any

import lightning
import pytest
import torch
import yaml

from lightning_atlas.adaptation import CosineSchedule
from lightning_atlas.cli import main
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import SupervisedPretraining
from lightning_atlas.networks import UNet
from lightning_atlas.tasks import Segmentation


class Diary(lightning.Callback):
    """Notes the steps after which validation ran, the epochs, and the learning rate of each step."""

    def __init__(self):
        self.validated, self.epochs, self.rates = [], [], []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs.append(trainer.current_epoch)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(data, **settings: Any):
    diary = Diary()
    task = Segmentation(SlidingWindow(patch=(16, 16, 16), overlap=0.0))
    run: Any = SupervisedPretraining(
        UNet(features=(2, 4)), task, partial(torch.optim.AdamW, lr=1e-2), CosineSchedule(warmup=0.0)
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(**quiet, enable_checkpointing=False, callbacks=[diary], **settings)
    trainer.fit(run, datamodule=data)
    return trainer, run, diary


def test_a_budget_in_steps_alone_is_the_whole_length_and_an_epoch_is_what_it_was(toy_data):
    trainer, run, diary = fit(toy_data(), max_steps=6)
    assert run.total_steps == trainer.global_step == 6
    assert diary.epochs == [0, 0, 0, 0, 1, 1]
    assert diary.rates == pytest.approx([1e-2 * run.schedule(step, 6) for step in range(6)])
    assert diary.rates[-1] < 1e-3


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 6, "max_epochs": -1}, 6),
        ({"max_steps": 6, "max_epochs": 1}, 4),
        ({"max_steps": 6, "max_epochs": 9}, 6),
        ({"max_steps": 3, "accumulate_grad_batches": 2}, 3),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 6),
        ({"max_epochs": 3, "limit_train_batches": 2}, 6),
    ],
)
def test_the_shorter_of_two_limits_holds_and_the_schedule_knows_it(toy_data, settings, steps):
    trainer, run, _ = fit(toy_data(), **settings)
    assert run.total_steps == trainer.global_step == steps


def test_validation_may_be_counted_in_steps_across_epochs(toy_data):
    """An interval longer than an epoch needs `check_val_every_n_epoch: null`."""
    settings = {"val_check_interval": 6, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    _, _, diary = fit(toy_data(), max_steps=14, **settings)
    assert diary.validated == [6, 12]
    assert diary.epochs[-1] == 3


def test_a_run_of_no_known_length_is_told(toy_data):
    with pytest.raises(ValueError, match=r"set trainer\.max_steps or trainer\.max_epochs"):
        fit(toy_data(), max_epochs=-1)


def test_a_recipe_takes_a_budget_in_steps(tmp_path, capsys):
    budget = {"max_epochs": -1, "max_steps": 3, "val_check_interval": 2, "check_val_every_n_epoch": None}
    (tmp_path / "budget.yaml").write_text(yaml.safe_dump({"trainer": budget}), encoding="utf-8")
    words = ["target/chest_ct", "machine/smoke", str(tmp_path / "budget.yaml")]
    assert main(["fit", *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3
    assert "1 validations of" in capsys.readouterr().out
