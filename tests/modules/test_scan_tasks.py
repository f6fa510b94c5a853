from functools import partial
from typing import Any, cast

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_atlas.adaptation import HeadOnly, LayerWiseDecay
from lightning_atlas.contract import Contract
from lightning_atlas.intake import load_weights
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.modules import TransferLearning
from lightning_atlas.networks import UNet
from lightning_atlas.networks.base import stage_tensors
from lightning_atlas.tasks import Classification, MultiLabelClassification, Regression

TARGETS = {
    "class": torch.tensor([0, 1]),
    "labels": torch.tensor([[1.0, 0.0], [0.0, float("nan")]]),
    "values": torch.tensor([[60.0, 1.5], [80.0, float("nan")]]),
}
TASKS: dict[str, Any] = {"class": Classification, "labels": MultiLabelClassification, "values": Regression}


@pytest.fixture
def scans(toy_data, toy_batch):
    """Make the toy data with a target for each case."""

    class Scans(toy_data):
        def __init__(self, kind="class", seen=None):
            super().__init__(Contract(classes=("one", "other"), predicts=kind, seen_values=seen))

        def _loader(self, numbers, cases):
            target = TARGETS[self.contract.predicts][:cases]
            return DataLoader(
                cast(Dataset, [{**toy_batch(n, cases), "target": target} for n in numbers]), batch_size=None
            )

        def train_dataloader(self):
            return self._loader(range(4), 2)

        def val_dataloader(self):
            return self._loader([9], 2)

        test_dataloader = val_dataloader

    return Scans


def trainer(**settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return lightning.Trainer(**{**quiet, "max_epochs": 1, "enable_checkpointing": False, **settings})


def run(kind: str = "class", **settings: Any) -> Any:
    torch.manual_seed(1)
    return TransferLearning(UNet(features=(4, 8)), TASKS[kind](), partial(torch.optim.AdamW, lr=1e-2), **settings)


@pytest.mark.parametrize("kind", TASKS)
def test_each_task_trains_and_is_scored_under_its_own_names(kind, scans):
    module, fit = run(kind), trainer()
    fit.fit(module, datamodule=scans(kind))
    result = module.results["val"]
    assert fit.callback_metrics[f"val/{result.headline}"].item() == pytest.approx(result.mean, nan_ok=True)
    assert "train/loss" in fit.callback_metrics
    prediction = module.predict_step({**scans(kind).train_dataloader().dataset[0]}, 0)
    assert prediction.values.shape == (2, 2)


def test_head_only_moves_the_head_alone(scans):
    module = run(adaptation=[HeadOnly()])
    *encoder, head = module.network.stages()
    before = [{name: value.clone() for name, value in stage_tensors(module.network, each).items()} for each in encoder]
    fit = trainer()
    fit.fit(module, datamodule=scans())
    after = [stage_tensors(module.network, each) for each in encoder]
    assert all(torch.equal(old[name], new[name]) for old, new in zip(before, after, strict=True) for name in old)
    assert head.name == "head"
    assert fit.optimizers[0].param_groups[0]["name"] == "head"
    assert len(fit.optimizers[0].param_groups) == 1


def test_the_encoder_of_a_segmentation_comes_in_and_its_decoder_is_left_over(scans, tmp_path):
    torch.manual_seed(7)
    segmentation, path = UNet(features=(4, 8), out_channels=5), tmp_path / "weights.pt"
    torch.save(segmentation.state_dict(), path)
    module = run(weights=str(path), adaptation=[LayerWiseDecay(0.5)])
    fit = trainer(max_steps=1)
    fit.fit(module, datamodule=scans())
    assert module.intake.encoder_share == 1.0
    left = {each.name.split(".")[0] for each in module.intake.left_over}
    assert left == {"decoder", "head"}
    assert module.fresh == {"head"}
    rates = {group["name"]: group["lr"] for group in fit.optimizers[0].param_groups}
    assert rates["encoder.1"] == pytest.approx(2 * rates["encoder.0"])
    assert rates["head"] == pytest.approx(1e-2)


def test_weights_of_a_classification_fill_the_encoder_of_a_segmentation():
    torch.manual_seed(3)
    classifier = Classification().adapted(UNet(features=(4, 8)))
    source = SourceWeights(dict(classifier.state_dict()), Contract(classes=("a",), predicts="class"), "memory", "")
    network = UNet(features=(4, 8))
    report = load_weights(network, source, ("liver",))
    assert report.encoder_share == 1.0
    first = "encoder.0.0.conv.weight"
    assert torch.equal(network.state_dict()[first], classifier.state_dict()[f"backbone.{first}"])
    assert {each.name for each in report.left_over} == {"head.weight", "head.bias"}


def test_a_regression_keeps_the_units_of_its_training(scans, tmp_path):
    module, fit = run("values"), trainer(enable_checkpointing=True, default_root_dir=tmp_path)
    fit.fit(module, datamodule=scans("values", ((70.0, 10.0), (1.5, 0.5))))
    path = fit.checkpoint_callback.last_model_path or fit.checkpoint_callback.best_model_path
    again = run("values")
    trainer().test(again, datamodule=scans("values"), ckpt_path=path, verbose=False)
    assert again.task.mean.tolist() == [70.0, 1.5]
    assert again.task.spread.tolist() == [10.0, 0.5]
    assert torch.allclose(again.results["test"].values, module.results["val"].values, atol=1e-4)


def test_a_task_that_does_not_fit_the_data_ends_before_the_first_step(scans):
    with pytest.raises(ValueError, match=r"task\.class_path: Regression"):
        trainer().fit(run("class"), datamodule=scans("values"))
