"""What do sparse and partial labels cost a pre-training? All drawn, a third undrawn, every fifth slice drawn.

    python tests/benchmarks/bench_pretraining.py [--steps 900] [--every 150] [ARM ...]

All arms are `recipes/pretrain/organs_abdomen_ct.yaml` (20 overlapping classes, sigmoid) on the same twelve warps of one
scan, as three datasets of four: `dense` has everything drawn; in `partial` each dataset lacks another third of the
classes, with all their structures, so that every class is drawn in two of three cases; in `sparse` every fifth slice
is drawn. Validation is dense. The numbers come from a simulated cohort of one scan: they
show mechanics, and are no evidence about patients.
"""

import argparse
import json
import time
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_atlas.cli import main
from lightning_atlas.cli.recipes import find_recipe
from lightning_atlas.data.embedded import embedded_case

RECIPE = "pretrain/organs_abdomen_ct"
SCAN = "abdomen_ct"
ARMS = ("dense", "partial", "sparse")
DATASETS = 3


def source(arm: str) -> dict[str, Any]:
    """Return the mixture of an arm, as in a recipe; only the first dataset has a validation and a test subject."""
    together = structures()
    cohorts = {}
    for number in range(DATASETS):
        held_out = int(number == 0)
        options = {"scan": SCAN, "train": 4, "val": held_out, "test": held_out, "displacement_mm": 15, "seed": number}
        if arm == "partial":
            kept = (group for place, group in enumerate(together) if place % DATASETS != number)
            options["drawn"] = [name for group in kept for name in group]
        if arm == "sparse":
            options["drawn_planes"] = list(range(0, planes(), 5))
        cohorts[f"site_{number}"] = {"class_path": "SimulatedCohort", "init_args": options}
    return {"class_path": "Mixture", "init_args": {"datasets": cohorts}}


def structures() -> list[list[str]]:
    """Return the scan's structures in groups: those that a class of the recipe has together are in one."""
    recipe = yaml.safe_load(find_recipe(RECIPE).read_text(encoding="utf-8"))
    classes = recipe["data"]["init_args"]["classes"]["init_args"]["names"].values()
    groups = [{name} for name in embedded_case(SCAN, "train").names]
    for patterns in classes:
        touched = [group for group in groups if any(fnmatchcase(name, one) for name in group for one in patterns)]
        groups = [group for group in groups if group not in touched] + [set().union(*touched)]
    return sorted(sorted(group) for group in groups)


def planes() -> int:
    """Return how many slices the scan has."""
    image = embedded_case(SCAN, "train").channels["image"]
    return nibabel.load(image).shape[2]  # pyright: ignore[reportAttributeAccessIssue]


def curves(arm: str, steps: int, every: int) -> tuple[dict[str, dict[int, float]], float]:
    """Train once, and return the validation Dice of each class over the steps, and the seconds that it took."""
    begin = time.monotonic()
    with TemporaryDirectory() as folder:
        options = {
            "data.source": json.dumps(source(arm)),
            "data.patches.per_epoch": every,
            "trainer.max_steps": steps,
            "trainer.limit_test_batches": 0,
            "trainer.num_sanity_val_steps": 0,
            "trainer.enable_progress_bar": "false",
            "trainer.default_root_dir": folder,
        }
        if code := main(["fit", RECIPE, *(f"--{key}={value}" for key, value in options.items())]):
            raise SystemExit(code)
        seconds = time.monotonic() - begin
        events = EventAccumulator(str(next(Path(folder).rglob("events.out.*")).parent)).Reload()
        scored = [tag for tag in events.Tags()["scalars"] if tag.startswith("val/dice")]
        return {tag: {each.step + 1: each.value for each in events.Scalars(tag)} for tag in scored}, seconds


def table(found: dict[str, dict[str, dict[int, float]]], seconds: dict[str, float]) -> str:
    """Return the mean over the steps, then each class at the end."""
    arms = list(found)
    lines = ["validation Dice (simulated cohort), one seed", f"{'':34}" + "".join(f"{arm:>10}" for arm in arms)]
    steps = sorted({step for arm in arms for step in found[arm]["val/dice"]})
    for step in steps:
        values = [found[arm]["val/dice"].get(step, float("nan")) for arm in arms]
        lines.append(f"{f'mean after {step} steps':34}" + "".join(f"{value:10.3f}" for value in values))
    for tag in found[arms[0]]:
        if tag != "val/dice":
            values = [list(found[arm].get(tag, {0: float("nan")}).values())[-1] for arm in arms]
            lines.append(f"{tag.removeprefix('val/dice/'):34}" + "".join(f"{value:10.3f}" for value in values))
    lines.append(f"{'minutes':34}" + "".join(f"{seconds[arm] / 60:10.1f}" for arm in arms))
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", default=ARMS)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--every", type=int, default=150)
    chosen = parser.parse_args()
    curves_of, seconds_of = {}, {}
    for name in chosen.arms:
        curves_of[name], seconds_of[name] = curves(name, chosen.steps, chosen.every)
    print("\n" + table(curves_of, seconds_of))
