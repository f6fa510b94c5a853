"""What a recipe says in `adapters` reaches the weights, and the contract lets it pass."""

from dataclasses import replace
from functools import partial
from typing import Any

import lightning
import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.intake.adapters import InputChannels, NearestStage
from lightning_atlas.intake.weights import write_weights
from lightning_atlas.modules import TransferLearning
from lightning_atlas.modules.agreement import check_agreement
from lightning_atlas.networks import UNet
from lightning_atlas.tasks import Segmentation

TWO = Contract(classes=("liver", "spleen"), modality="MR", channels=("t1", "t2"))


def test_a_recipe_names_them_in_their_order():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TransferLearning, "model")
    window = {"class_path": "SlidingWindow"}
    parts = {
        "network": {"class_path": "UNet"},
        "task": {"class_path": "Segmentation", "init_args": {"window": window}},
        "adapters": [{"class_path": "InputChannels", "init_args": {"how": "zero"}}, {"class_path": "NearestStage"}],
    }
    path = "lightning_atlas.modules.TransferLearning"
    given = parser.parse_object({"model": {"class_path": path, "init_args": parts}})
    module: Any = parser.instantiate_classes(given)["model"]
    assert module.adapters == (InputChannels("zero"), NearestStage())


def test_channels_may_differ_where_a_rule_is_given_for_them():
    four = replace(TWO, channels=("t1", "t2", "flair", "t1c"))
    with pytest.raises(ValueError, match="first layer takes 2") as caught:
        check_agreement(TWO, four, ["channels"], "w")
    assert "model.init_args.adapters: [{class_path: InputChannels}]" in str(caught.value)
    told = check_agreement(TWO, four, [], "w", {"channels"})
    assert told == ["channels: the weights expect (t1, t2), the data give (t1, t2, flair, t1c)"]
    with pytest.raises(ValueError, match="expect modality MR, not CT"):
        check_agreement(TWO, replace(four, modality="CT"), [], "w", {"channels"})


def test_weights_of_two_channels_start_a_network_of_three(tmp_path, toy_data, capsys):
    class Three(toy_data):
        """An image of three channels."""

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {**batch, "image": batch["image"].expand(-1, 3, -1, -1, -1)}

    trained = UNet(in_channels=2, features=(2, 4), out_channels=3)
    path = tmp_path / "two.safetensors"
    write_weights(path, trained, TWO, {})
    settings: Any = {"optimizer": partial(torch.optim.SGD, lr=0.0), "weights": str(path)}
    task = Segmentation(SlidingWindow((8, 8, 8)))
    module: Any = TransferLearning(UNet(3, 3, (2, 4)), task, adapters=[InputChannels("mean")], **settings)
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=1, limit_val_batches=0, **quiet)
    trainer.fit(module, Three(replace(TWO, channels=("a", "b", "c"))))
    name = next(iter(trained.state_dict()))
    taken, given = (each.get_parameter(name) for each in (module.network, trained))
    torch.testing.assert_close(taken.sum(1), given.sum(1))
    told = capsys.readouterr().out
    assert "allowed: channels: the weights expect (t1, t2), the data give (a, b, c)" in told
    assert "2 -> 3 input channels: sum divided by 3" in told


def test_weights_of_channels_in_another_order_go_by_name(tmp_path, toy_data, capsys):
    class Two(toy_data):
        """An image of two channels."""

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {**batch, "image": batch["image"].expand(-1, 2, -1, -1, -1)}

    trained = UNet(in_channels=2, features=(4, 6), out_channels=3)
    path = tmp_path / "two.safetensors"
    write_weights(path, trained, TWO, {})
    settings: Any = {"optimizer": partial(torch.optim.SGD, lr=0.0), "weights": str(path)}
    task = Segmentation(SlidingWindow((8, 8, 8)))
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}

    def fit(**how: Any) -> UNet:
        module: Any = TransferLearning(UNet(2, 3, (4, 6)), task, **settings, **how)
        lightning.Trainer(max_steps=1, limit_val_batches=0, **quiet).fit(
            module, Two(replace(TWO, channels=("t2", "t1")))
        )
        return module.network

    with pytest.raises(ValueError, match=r"take channels by their names: .*InputChannels"):
        fit()
    first, *others = trained.state_dict()
    for how in ({"adapters": [InputChannels("zero")]}, {"allow": ["channels"]}):
        found = fit(**how).state_dict()
        assert torch.equal(found[first], trained.state_dict()[first].flip(1))
        assert all(torch.equal(found[name], trained.state_dict()[name]) for name in others if "head" not in name)
        assert "2 -> 2 input channels: t2, t1 by name" in capsys.readouterr().out
