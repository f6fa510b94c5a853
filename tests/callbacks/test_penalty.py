import copy

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer

from lightning_atlas.adaptation import Adaptation, LoRA
from lightning_atlas.callbacks import KernelPenalty
from lightning_atlas.cli.recipes import recipes_folder
from lightning_atlas.networks import ValidUNet

FIRST = ["encoder.*.0", "decoder.*.0"]


class Fitting(LightningModule):
    """One step of plain gradient descent on the sum of the logits, with or without the penalty in the loss."""

    def __init__(self, network, weight=0.0):
        super().__init__()
        self.network, self.weight = network, weight

    def training_step(self, batch, batch_idx):
        kernels = [each[0].weight for part in (self.network.encoder, self.network.decoder) for each in part]
        return self.network(batch).mean() + self.weight * sum(each.square().sum() for each in kernels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


def fit(module, *callbacks, folder):
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    trainer.fit(module, torch.randn(2, 1, 1, 18, 18, 18))
    return dict(module.network.named_parameters())


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_a_step_is_that_of_the_penalty_in_the_loss_and_other_kernels_are_not_drawn(tmp_path):
    network = ValidUNet(features=(2, 3))
    plain = fit(Fitting(copy.deepcopy(network)), folder=tmp_path)
    in_loss = fit(Fitting(copy.deepcopy(network), weight=0.3), folder=tmp_path)
    drawn = fit(Fitting(copy.deepcopy(network)), KernelPenalty(FIRST, weight=0.3), folder=tmp_path)
    for name, each in drawn.items():
        torch.testing.assert_close(each, in_loss[name])
    assert not torch.allclose(drawn["encoder.1.0.weight"], plain["encoder.1.0.weight"], rtol=1e-2)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_a_kernel_that_rests_is_not_drawn(tmp_path):
    module = Fitting(ValidUNet(features=(2, 3)))
    module.network.encoder[0].requires_grad_(False)
    before = copy.deepcopy(module.network.state_dict())
    after = fit(module, KernelPenalty(FIRST, weight=0.3), folder=tmp_path)
    same = {name for name, each in after.items() if torch.equal(each, before[name])}
    assert same == {f"encoder.0.{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")}


METHODS = sorted({each.stem for each in recipes_folder().glob("method/*.yaml")} - {"stochastic_norm"})
"""All but the one for networks with batch norm."""


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_the_kernels_of_the_recipes_to_be_found(method):
    recipe = yaml.safe_load((recipes_folder() / "method" / f"{method}.yaml").read_text(encoding="utf-8"))
    asked = recipe["model"]["init_args"].get("adaptation") or []
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--adaptation", type=list[Adaptation])
    network = ValidUNet(features=(2, 3))
    for each in parser.instantiate(parser.parse_object({"adaptation": asked})).adaptation:
        each.build(network, set())
    KernelPenalty(FIRST).on_fit_start(Trainer(logger=False, accelerator="cpu"), Fitting(network))


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_under_lora_kernels_of_fresh_stages_are_drawn_and_held_ones_are_not(tmp_path):
    module, lora = Fitting(ValidUNet(features=(2, 3))), LoRA(rank=2)
    lora.build(module.network, {"encoder.1.0"})
    held = lora.holds(module.network, {"encoder.1.0"})
    for name, each in module.network.named_parameters():
        each.requires_grad_(name not in held)
    before = copy.deepcopy(module.network.state_dict())
    after = fit(module, KernelPenalty(FIRST, weight=5.0), folder=tmp_path)  # at a rate of 0.1 a step leaves nothing
    kernels = {name: each for name, each in after.items() if name.endswith("0.parametrizations.weight.original")}
    assert {name for name, each in kernels.items() if not torch.equal(each, before[name])} == {
        "encoder.1.0.parametrizations.weight.original"
    }
    drawn = after["encoder.1.0.parametrizations.weight.original"]
    assert drawn.abs().max() < 0.1 * before["encoder.1.0.parametrizations.weight.original"].abs().max()


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_a_name_that_is_none_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"no layer of ValidUNet is called 'encoder.\*.7'; it has encoder.0.0, "):
        fit(Fitting(ValidUNet(features=(2, 3))), KernelPenalty(["encoder.*.7"]), folder=tmp_path)
    with pytest.raises(ValueError, match="weight of KernelPenalty is -1"):
        KernelPenalty(FIRST, weight=-1.0)
