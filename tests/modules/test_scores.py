"""What is logged of a validation."""

from typing import Any, cast

import lightning
import pytest
from torch.utils.data import DataLoader, Dataset

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import SupervisedPretraining
from lightning_atlas.networks import UNet
from lightning_atlas.tasks import Segmentation


def validated(data):
    module = SupervisedPretraining(UNet(features=(4, 8)), Segmentation(SlidingWindow(patch=(16, 16, 16))))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(**quiet, enable_checkpointing=False)
    trainer.validate(module, datamodule=data, verbose=False)
    result: Any = module.results["val"]
    return trainer.callback_metrics, result


@pytest.mark.parametrize("names", [["a", "b", "a"], ["dice", "liver", "dice"]])
def test_each_dataset_has_a_score_of_its_own_beside_those_of_the_classes(names, toy_data, toy_batch):
    class Several(toy_data):
        def val_dataloader(self):
            return DataLoader(cast(Dataset, [toy_batch(9, cases=3)]), batch_size=None)

        def datasets(self, split):
            assert split == "val"
            return names

    logged, result = validated(Several())
    assert set(logged) == {"val/dice", "val/dice/liver", "val/dice/spleen", *(f"val/dataset/{n}/dice" for n in names)}
    assert float(logged[f"val/dataset/{names[0]}/dice"]) == pytest.approx(result.dice[[0, 2]].mean().item(), abs=1e-6)
    assert float(logged[f"val/dataset/{names[1]}/dice"]) == pytest.approx(result.dice[1].mean().item(), abs=1e-6)


def test_one_dataset_has_none(toy_data):
    logged, _ = validated(toy_data())
    assert set(logged) == {"val/dice", "val/dice/liver", "val/dice/spleen"}
