"""What cannot be trained is refused in a line and with exit code 2: by a fit, and by an inspection of its recipe."""

import json
from pathlib import Path

import pytest
import torch

from lightning_atlas.cli import main
from lightning_atlas.networks import UNet

WEIGHTS = Path(__file__).parents[1] / "intake" / "formats" / "1"
RECIPE = f"""\
model:
  class_path: TransferLearning
  init_args:
    network: {{class_path: UNet, init_args: {{features: [2, 4]}}}}
    task:
      class_path: Segmentation
      init_args: {{window: {{class_path: SlidingWindow, init_args: {{patch: [8, 8, 8]}}}}}}
    weights: {WEIGHTS}
    contract: adopt
    allow: [modality, normalization, window]
data:
  class_path: ScanDataModule
  init_args:
    source: {{class_path: SimulatedCohort, init_args: {{scan: abdomen_mr, train: 1, val: 0, test: 0}}}}
    classes: {{spleen: [spleen]}}
    preprocess: [{{class_path: torchio.Resample, init_args: {{target: 12}}}}]
    patches: {{class_path: Patches, init_args: {{size: [8, 8, 8], per_epoch: 1}}}}
trainer: {{accelerator: cpu, devices: 1, max_steps: 1, enable_model_summary: false}}
"""
HOLDS_ALL = """\
from lightning_atlas.adaptation import HeadOnly


class Nothing(HeadOnly):
    def moving(self, stages, fresh):
        return [False for _ in stages]
"""


def adaptation(name: str, **arguments: object) -> list[str]:
    given = [{"class_path": name, "init_args": arguments}]
    return [f"--model.adaptation={json.dumps(given, separators=(',', ':'))}"]


OTHER = ["--model.weights=other.pt", "--model.contract=match"]
MISTAKES = {
    "a stage that does not exist": (adaptation("SurgicalBlock", first="encoder.9"), "no stage is called encoder.9"),
    "nothing to train": (adaptation("own_parts.Nothing"), "nothing is left to train: the adaptation holds decoder.0"),
    "LoRA without such layers": (adaptation("LoRA", layers=["*.qkv"]), "no layer outside of the head of UNet matches"),
    "a decay above 1": (adaptation("LayerWiseDecay", decay=1.5), "decay of LayerWiseDecay is 1.5; it must be above 0"),
    "weights of another network": (OTHER, "other.pt fills 0.0% of the encoder of UNet"),
}


@pytest.mark.parametrize("verb", ["fit", "inspect"])
@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_trained_is_refused_in_a_line(verb, name, working_folder, capsys):
    options, told = MISTAKES[name]
    (working_folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (working_folder / "own_parts.py").write_text(HOLDS_ALL, encoding="utf-8")
    torch.save({"net": UNet(features=(3, 5)).state_dict()}, "other.pt")
    code = main([verb, "--config", "recipe.yaml", *options])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("recipe:", "note:"))]
    assert code == 2
    assert told in lines[0]
    assert len(lines[0]) < 400
    assert len(lines) <= 3
