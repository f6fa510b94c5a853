"""LoRA in runs: what a fit moves, what a checkpoint holds, and that every way back gives the same network."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from lightning_atlas.adaptation import LoRA
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.intake import read_weights
from lightning_atlas.intake.weights import read_file
from lightning_atlas.modules import TransferLearning
from lightning_atlas.networks import UNet
from lightning_atlas.tasks import Segmentation

SCRIPT = Path(__file__).with_name("lora_run.py")


def trainer(**settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return lightning.Trainer(**{**quiet, "enable_checkpointing": False, **settings})


def module(weights=None) -> Any:
    lightning.seed_everything(1)
    task = Segmentation(SlidingWindow(patch=(16, 16, 16), overlap=0.0))
    make = partial(torch.optim.AdamW, lr=3e-2)
    return TransferLearning(UNet(features=(4, 8)), task, make, weights=weights, adaptation=[LoRA(rank=2)])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A file of weights of the network, with a head for no known class."""
    path = tmp_path_factory.mktemp("source") / "source.pt"
    torch.manual_seed(5)
    torch.save(UNet(features=(4, 8)).state_dict(), path)
    return path


class Halfway(lightning.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def fitted(source, toy_data, tmp_path):
    """A run of two epochs with `half.ckpt` and `last.ckpt`."""
    run, fit = module(str(source)), trainer(max_epochs=2, callbacks=[Halfway(tmp_path / "half.ckpt")])
    fit.fit(run, datamodule=toy_data())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    return run


def test_a_fit_leaves_the_weights_as_they_were(fitted, source):
    before, after = torch.load(source, weights_only=True), fitted.network.state_dict()
    originals = {name: each for name, each in after.items() if name.endswith("original")}
    assert len(originals) == 7
    for name, each in originals.items():
        assert torch.equal(each, before[name.replace("parametrizations.weight.original", "weight")])
    plain = [name for name in before if name in after and not name.startswith("head.")]
    assert plain
    assert all(torch.equal(after[name], before[name]) for name in plain)
    assert all(each.any() for name, each in after.items() if name.endswith("0.B"))


def test_a_resumed_fit_ends_as_the_whole_one(fitted, source, toy_data, tmp_path):
    for weights in (str(source), str(tmp_path / "gone.pt")):  # without its file too
        rest = module(weights)
        trainer(max_epochs=2).fit(rest, datamodule=toy_data(), ckpt_path=tmp_path / "half.ckpt")
        torch.testing.assert_close(rest.network.state_dict(), fitted.network.state_dict(), rtol=0.0, atol=0.0)


def test_a_test_repeats_the_numbers_of_the_fit(fitted, toy_data, tmp_path):
    again = module(str(tmp_path / "gone.pt"))
    trainer().test(again, datamodule=toy_data(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert torch.equal(again.results["test"].dice, fitted.results["val"].dice)


def test_a_checkpoint_gives_the_same_network_merged_and_in_parts(fitted, tmp_path):
    path = tmp_path / "last.ckpt"
    plain, parts, image = UNet(out_channels=3, features=(4, 8)), module(), torch.randn(1, 1, 16, 16, 16)
    plain.load_state_dict(read_weights(str(path)).tensors, strict=True)
    checkpoint = torch.load(path, weights_only=True)
    parts.on_load_checkpoint(checkpoint)
    parts.load_state_dict(checkpoint["state_dict"], strict=True)
    with torch.no_grad():
        wanted = fitted.network.eval()(image)
        assert torch.equal(plain.eval()(image), wanted)
        assert torch.equal(parts.network.eval()(image), wanted)


def run(strategy, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *(launch if strategy != "alone" else []), str(SCRIPT), strategy, str(folder)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return {end: read_file(folder / f"{strategy}_{end}.ckpt").tensors for end in ("whole", "rest")}


@pytest.mark.slow
def test_two_processes_train_save_and_resume_as_one(source, tmp_path):
    (tmp_path / "source.pt").write_bytes(source.read_bytes())
    alone = run("alone", tmp_path)
    torch.testing.assert_close(alone["rest"], alone["whole"], rtol=0.0, atol=0.0)
    losses = torch.load(tmp_path / "alone.pt", weights_only=True)
    assert losses[-1] < losses[0]
    for strategy in ("ddp", "fsdp"):
        both = run(strategy, tmp_path)
        torch.testing.assert_close(both["whole"], alone["whole"], rtol=0.0, atol=1e-5)
        torch.testing.assert_close(both["rest"], both["whole"], rtol=0.0, atol=1e-6)
        torch.testing.assert_close(
            torch.load(tmp_path / f"{strategy}.pt", weights_only=True), losses, rtol=0.0, atol=1e-5
        )
