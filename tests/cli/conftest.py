from importlib import import_module
from pathlib import Path

import pytest

from lightning_atlas.cli import main

# Before a test captures standard error: Lightning's log handler keeps the one that it finds when it is imported.
import_module("lightning.pytorch")

BASE = """\
# A toy.
model:
  class_path: toy_parts.ToyModule
  init_args:
    network: {class_path: Toy, init_args: {width: 4, depth: 2}}
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  class_path: toy_parts.ToyData
  init_args:
    size: 4
    augment: [{class_path: Blur, init_args: {sigma: 2.0}}, {class_path: Blur}]
    classes: {liver: [liver]}
trainer: {accelerator: cpu, devices: 1, max_epochs: 2, enable_model_summary: false, log_every_n_steps: 1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with one complete recipe, `base.yaml`."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def command(folder, capsys):
    """Runs a command in the working folder: words -> exit code, standard output, standard error."""

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run
