"""Remake the starter weights that the package ships: train by the recipe, score, and write the published entry.

    python tests/benchmarks/make_starter.py          # trains first: under an hour on two quiet cores
    python tests/benchmarks/make_starter.py RUN      # takes a run folder in which that training ended

The entry (safetensors in half precision, and a JSON with hash, contract and card) goes where the package keeps it.
"""

import csv
import sys
from pathlib import Path

from lightning_atlas.cli import main
from lightning_atlas.intake import load_weights, read_weights, zoo

NAME = "starter_abdomen_ct"
RECIPE = f"pretrain/{NAME}"
CARD = """What it is: a small 3D U-Net for structures of the abdomen and pelvis on CT at 3 mm, to start from.
Trained on a simulated cohort (smooth warps, affine maps, gamma and noise) of ONE real scan of one patient, whose labels
were made by a model, not by hand. Mean Dice {dice:.2f} over {classes} classes and {cases} held-out warps of that same
scan; not learned (Dice below 0.1) are {missed}.
What it is not: evidence about patients, a model for clinical use, or a substitute for weights from many patients."""


def newest_run() -> Path:
    """Train, and return the folder in which the run ended."""
    if code := main(["fit", RECIPE]):
        raise SystemExit(code)
    return max(Path("runs", NAME).iterdir())


def publish(run: Path) -> Path:
    """Write the entry from a run's last checkpoint, and return its file of weights."""
    source = read_weights(str(run / "checkpoints" / "last.ckpt"))
    if source.contract is None:
        raise ValueError(f"the checkpoint of {run} has no contract")
    classes = source.contract.classes
    arguments = {"features": [16, 32, 64, 96], "out_channels": len(classes) + 1}
    spec = {"class_path": "lightning_atlas.networks.UNet", "init_args": arguments}
    network = zoo.build_network(spec)
    load_weights(network, source, classes, required_share=1.0)
    with (run / "scores.csv").open(encoding="utf-8", newline="") as file:
        dice = {row["class"]: float(row["dice"]) for row in csv.DictReader(file)}
    with (run / "cases.csv").open(encoding="utf-8", newline="") as file:
        cases = sum(1 for _ in csv.DictReader(file))
    missed = ", ".join(name for name in classes if dice[name] < 0.1) or "none"
    texts = {
        "licence": "Apache-2.0, as the scan and its labels",
        "origin": f"recipes/{RECIPE}.yaml on the abdomen CT of TotalSegmentator 2.10.0's test files",
        "card": CARD.format(dice=dice["mean"], cases=cases, classes=len(classes), missed=missed),
    }
    return zoo.write_entry(zoo.ZOO, NAME, network, source.contract, spec, texts).path


if __name__ == "__main__":
    print(publish(Path(sys.argv[1]) if len(sys.argv) > 1 else newest_run()))
