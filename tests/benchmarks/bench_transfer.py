"""Does starting from the shipped weights help, and for how long? Starter against scratch, with equal steps and seeds.

    python tests/benchmarks/bench_transfer.py [--seeds 3] [--every 50] [--patience 300] [--longest 2000] [TARGET ...]

Every run is a packaged target recipe with layer-wise decay and a constant learning rate, so that no schedule favours
a length; it is validated on a whole held-out warp every so many steps. From scratch it goes on until its Dice has not
risen by 0.01 in so many steps (the patience); from the starter weights it then takes as many steps. A run that has
stopped keeps its last value. The table says where the two meet. The numbers come from a simulated cohort of one scan:
they show mechanics, and are no evidence about patients.
"""

import argparse
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lightning_atlas.cli import main

TARGETS = ("target/abdomen_mr", "target/chest_ct")
MEETING = 0.01
"""Two curves have met when their means differ by less, and stay so."""


def curve(target: str, start: str, seed: int, every: int, epochs: int, patience: int | None = None) -> dict[int, float]:
    """Return the validation Dice after so many steps of one training; a patience, in validations, ends it early."""
    flat = {"monitor": "val/dice", "mode": "max", "min_delta": 0.01, "patience": patience}
    with TemporaryDirectory() as folder:
        words = ["fit", target, f"start/{start}", "method/layer_wise_decay"]
        options = {
            "seed_everything": seed,
            "data.seed": seed,
            "model.schedule": '{"class_path": "ConstantSchedule", "init_args": {"warmup": 0.0}}',
            "trainer.default_root_dir": folder,
            "trainer.max_epochs": epochs,
            "trainer.limit_train_batches": every,
            "trainer.limit_test_batches": 0,
            "trainer.num_sanity_val_steps": 0,
            "trainer.enable_progress_bar": "false",
        }
        stop = [f"--trainer.callbacks+={{'class_path': 'EarlyStopping', 'init_args': {flat}}}"] if patience else []
        if code := main([*words, *(f"--{key}={value}" for key, value in options.items()), *stop]):
            raise SystemExit(code)
        checkpoint = torch.load(next(Path(folder).rglob("last.ckpt")), weights_only=True)
        history = checkpoint["callbacks"]["RunReport"]
        return dict(zip(history["validated"], history["dice"], strict=True))


def table(target: str, scratch: list[dict[int, float]], starter: list[dict[int, float]], longest: int) -> str:
    """Return both curves, and where they meet."""
    steps = sorted(set().union(*scratch, *starter))
    lines = [f"{target}: validation Dice (simulated cohort), {len(scratch)} seeds, mean [lowest, highest]"]
    lines.append(f"{'steps':>6}  {'scratch':>20}  {'starter':>20}  difference")
    gaps = {}
    for step in steps:
        arms = [[run[min(step, max(run))] for run in arm] for arm in (scratch, starter)]
        means = [statistics.mean(arm) for arm in arms]
        gaps[step] = means[1] - means[0]
        shown = [f"{mean:.3f} [{min(arm):.3f}, {max(arm):.3f}]" for mean, arm in zip(means, arms, strict=True)]
        lines.append(f"{step:>6}  {shown[0]:>20}  {shown[1]:>20}  {gaps[step]:+.3f}")
    met = next((step for step in steps if all(gaps[later] < MEETING for later in steps if later >= step)), None)
    lines.append("the curves do not meet" if met is None else f"the curves meet at {met} steps")
    cut = sum(max(run) >= longest for run in scratch)
    lines.append(
        f"from scratch {len(scratch) - cut} of {len(scratch)} runs stopped rising; {cut} were cut off at {longest}"
    )
    return "\n".join(lines)


def compare(target: str, seeds: int, every: int, patience: int, longest: int) -> str:
    """Run both arms with every seed."""
    epochs, patience = longest // every, max(1, patience // every)
    scratch = [curve(target, "scratch", seed, every, epochs, patience) for seed in range(seeds)]
    lengths = [max(run) // every for run in scratch]
    starter = [curve(target, "starter", seed, every, lengths[seed]) for seed in range(seeds)]
    return table(target, scratch, starter, longest)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=TARGETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--patience", type=int, default=300, help="steps without a gain of 0.01")
    parser.add_argument("--longest", type=int, default=2000)
    chosen = parser.parse_args()
    results = [
        compare(target, chosen.seeds, chosen.every, chosen.patience, chosen.longest) for target in chosen.targets
    ]
    print("\n\n".join(["", *results]))
