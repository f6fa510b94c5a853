"""Networks whose logits lack the faces of the image, in training, validation and test."""

from functools import partial
from typing import Any

import lightning
import torch

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import SupervisedPretraining
from lightning_atlas.networks import ValidUNet
from lightning_atlas.tasks import Segmentation


def test_what_depends_on_the_voxel_alone_is_learned_so_logits_lie_on_their_labels(toy_data):
    """Bright is liver, dark is spleen, in noise: a label that is one voxel off says nothing."""
    lightning.seed_everything(1)
    data: Any = toy_data()
    data.context = 0
    task = Segmentation(SlidingWindow(patch=(16, 16, 16), overlap=0.0))
    run: Any = SupervisedPretraining(ValidUNet(features=(6,)), task, partial(torch.optim.Adam, lr=2e-2))
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(**quiet, max_epochs=20, enable_checkpointing=False, num_sanity_val_steps=0)
    trainer.fit(run, datamodule=data)
    assert data.context == run.network.context == 2
    assert trainer.callback_metrics["val/dice"] > 0.6  # faces included; 0.16 where they lie one voxel off
    trainer.test(run, datamodule=data, verbose=False)
    assert trainer.callback_metrics["test/dice"] > 0.6
    assert trainer.predict(run, dataloaders=data.test_dataloader())[0].rows.shape == (1, 16, 16, 16)  # pyright: ignore
