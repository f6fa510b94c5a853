"""Which way to adapt pays, and at how many drawn planes? Ten ways on one scan, with equal steps.

    python tests/benchmarks/bench_adaptation.py FOLDER [--short] [--target target/abdomen_mr] [--table]

Every run trains on one subject of a simulated cohort of which 1, 2, 4 or 8 planes are drawn, and is scored on its
undrawn planes and, apart, on two held-out warps. Each seed draws other planes, of which a smaller number are among
those of a larger, and all ways share them. A way's learning rate is the best of three at two planes and seed 0, by the
Dice of a warp that no table shows. Ways that start from weights run twice: with the outputs of shared classes copied by
name, and with all outputs new. Runs are kept in FOLDER one by one, so a stopped benchmark goes on; two run at a time,
each with one thread. `--short` has fewer planes, seeds, steps and ways: a quarter of an hour.

All cases are one patient: the numbers show what a way does, and are no evidence about patients.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

STARTING = {
    "full": "FullFineTuning",
    "head only": "HeadOnly",
    "last 2 stages": "LastStages",
    "frozen encoder": "FrozenEncoder",
    "layer-wise decay": "LayerWiseDecay",
    "heads first": "HeadsFirst",
    "LoRA": "LoRA",
}
"""Ways that start from weights, and their adaptation."""
ARMS = ("direct", "scratch", "scratch, 4 x steps", *STARTING)
RATES = (1e-3, 5e-3, 2.5e-2)
SHORT_ARMS = ("direct", "scratch", "full", "head only", "frozen encoder", "layer-wise decay", "LoRA")
CAPTION = (
    "All cases are one patient: one scan, its warps and its planes. Mean Dice over classes [lowest, highest seed].\n"
    "What scratch reaches with four times the steps is speed; what `direct` has already is overlap of classes."
)


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        target: A packaged recipe.
        arm: Of `ARMS`.
        head: `copied` by class name, or `new`.
        planes: Number of drawn ones.
        seed: Draws the planes, the patches and the head.
        steps: Optimizer steps.
        rate: Peak learning rate.
    """

    target: str
    arm: str
    head: str
    planes: int
    seed: int
    steps: int
    rate: float

    @property
    def name(self) -> str:
        """The name of its result's file."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def data_of(run: Run, planes: Sequence[int] | None) -> Any:
    """Return the target's data module with one training subject, drawn on some planes."""
    import yaml
    from jsonargparse import ArgumentParser
    from lightning import LightningDataModule

    from lightning_atlas.cli.recipes import find_recipe

    section = yaml.safe_load(find_recipe(run.target).read_text(encoding="utf-8"))["data"]
    arguments = section["init_args"]
    arguments["source"]["init_args"] |= {"train": 1, "val": 1, "test": 2, "drawn_planes": planes and sorted(planes)}
    arguments |= {"seed": run.seed, "num_workers": 0}
    if run.head == "new":
        arguments["classes"] = {f"my {name}": parts for name, parts in arguments["classes"].items()}
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    return parser.instantiate(parser.parse_object({"data": section})).data


def drawn_planes(run: Run) -> list[int]:
    """Return the planes of a seed: the first so many of its order of the middle ones."""
    from lightning_atlas.data.embedded import embedded_case
    from lightning_atlas.data.formats import read_header

    depth = read_header(Path(str(embedded_case(scan_of(run), "train").image))).shape[2]
    order = list(range(depth // 10, depth - depth // 10))
    random.Random(run.seed).shuffle(order)
    return order[: run.planes]


def scan_of(run: Run) -> Any:
    """Return the embedded scan of the target."""
    import yaml

    from lightning_atlas.cli.recipes import find_recipe

    recipe = yaml.safe_load(find_recipe(run.target).read_text(encoding="utf-8"))
    return recipe["data"]["init_args"]["source"]["init_args"]["scan"]


def perform(run: Run) -> dict[str, Any]:
    """Train and score."""
    import lightning
    import torch

    from lightning_atlas import adaptation
    from lightning_atlas.cli.runner import import_parts
    from lightning_atlas.inference import SlidingWindow
    from lightning_atlas.modules import TransferLearning
    from lightning_atlas.networks import UNet
    from lightning_atlas.tasks import Segmentation

    torch.set_num_threads(1)
    import_parts()
    lightning.seed_everything(run.seed, verbose=False)
    planes = drawn_planes(run)
    data, dense = data_of(run, planes), data_of(run, None)
    starts = run.arm in STARTING or run.arm == "direct"
    chosen = getattr(adaptation, STARTING.get(run.arm, "FullFineTuning"))
    module = TransferLearning(
        UNet(features=(16, 32, 64, 96)),
        Segmentation(SlidingWindow(patch=data.patches.size, overlap=0.25)),
        partial(torch.optim.AdamW, lr=0.0 if run.arm == "direct" else run.rate),
        adaptation.CosineSchedule(warmup=0.05),
        weights="starter_abdomen_ct" if starts else None,
        contract="adopt",
        allow=["modality", "normalization", "window"],
        adaptation=[chosen()],
    )
    steps = {"direct": 1, "scratch, 4 x steps": 4 * run.steps}.get(run.arm, run.steps)
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        enable_checkpointing=False,
        **quiet,
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    if run.arm == "direct":
        silence(module)
    for each in (data, dense):
        each.setup("test")
    dense.preprocess = data.preprocess  # as adopted
    return {**asdict(run), "drawn": planes, "seconds": seconds, **scores(module, data, dense)}


def silence(module: Any) -> None:
    """Let outputs that no weights gave never win."""
    import torch

    names = ["background", *module.contract.classes]
    with torch.no_grad():
        for row in (names.index(name) for name in module.intake.fresh_outputs):
            module.network.head.weight[row] = 0.0
            module.network.head.bias[row] = -1e4


def scores(module: Any, data: Any, dense: Any) -> dict[str, float]:
    """Return Dice on the undrawn planes and on the warps, of the network and of the nearest drawn plane copied."""
    import torch

    module.eval()
    thin, whole = data.whole("train", 0), dense.whole("train", 0)
    drawn = (thin["label"][0] != 0).flatten(0, 1).any(dim=0)
    undrawn = {**whole, "label": whole["label"] * (~drawn)}

    def predicted(case: Any) -> Any:
        with torch.inference_mode():
            return module.predict_step(case, 0)

    warps = [data.whole("test", number) for number in range(len(data.subjects("test")))]
    return {
        "undrawn": mean_dice([undrawn], predicted),
        "warps": mean_dice(warps, predicted),
        "chosen by": mean_dice([data.whole("val", 0)], predicted),
        "undrawn, copy": copied_dice([undrawn], thin),
        "warps, copy": copied_dice(warps, thin),
    }


def mean_dice(cases: Sequence[Any], of: Callable[[Any], Any]) -> float:
    """Return the mean Dice over classes of what is said of whole cases."""
    import torch

    from lightning_atlas.metrics import CaseDice

    metric = CaseDice(cases[0]["states"].shape[2])
    for number, case in enumerate(cases):
        volume = case["spacing_mm"].prod(1) / 1000
        metric.update(of(case), case["label"], case["states"], case["drawn"], torch.tensor([number]), volume)
    return float(metric.compute().mean)


def copied_dice(cases: Sequence[Any], drawn: Any) -> float:
    """Return the mean Dice of each plane as a copy of the nearest one that is drawn on a training case."""
    from lightning_atlas.callbacks.baseline import nearest_plane
    from lightning_atlas.types import Prediction

    copy = nearest_plane(drawn["label"][0])
    assert copy is not None
    return mean_dice(cases, lambda _: Prediction(copy[None], drawn["states"] == 1))


def perform_all(runs: Sequence[Run], folder: Path) -> list[dict[str, Any]]:
    """Return the results of all runs; those that lie in the folder are not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [run for run in dict.fromkeys(runs) if not (folder / run.name).exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for number, done in enumerate(as_completed({pool.submit(_keep, run, folder) for run in wanted}), start=1):
            result = done.result()
            shown = f"{result['arm']}, {result['head']} head, {result['planes']} planes, seed {result['seed']}"
            print(f"{number} of {len(wanted)}: {shown}: {result['warps']:.3f} ({result['seconds']:.0f} s)", flush=True)
    return [json.loads((folder / run.name).read_text(encoding="utf-8")) for run in runs]


def _keep(run: Run, folder: Path) -> dict[str, Any]:
    result = perform(run)
    path = folder / run.name
    path.with_suffix(".part").write_text(json.dumps(result, indent=1), encoding="utf-8")
    path.with_suffix(".part").rename(path)
    return result


def best_rates(runs: Sequence[Run], folder: Path) -> dict[tuple[str, str], float]:
    """Return the rate of each way: chosen once, at two planes and seed 0."""
    trials = [replace(run, planes=2, seed=0, rate=rate) for run in runs if run.arm != "direct" for rate in RATES]
    return best_of(perform_all(list(dict.fromkeys(trials)), folder))


def best_of(trials: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Return the rate of each way whose trial did best on the warp that no table shows."""
    best: dict[tuple[str, str], float] = {}
    for each in sorted(trials, key=lambda each: each["chosen by"]):
        best[each["arm"], each["head"]] = each["rate"]
    return best


def at_best_rates(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results without those of rates that were only tried."""
    best = best_of([each for each in results if (each["planes"], each["seed"]) == (2, 0)])
    return [each for each in results if each["rate"] == best.get((each["arm"], each["head"]))]


def all_runs(target: str, short: bool) -> list[Run]:
    """Return every run, at a rate that is yet to be chosen."""
    planes, seeds, steps = ((1, 4), 2, 75) if short else ((1, 2, 4, 8), 3, 100)
    ways = [(arm, "copied") for arm in (SHORT_ARMS if short else ARMS)]
    ways += [] if short else [(arm, "new") for arm in STARTING]
    return [
        Run(target, arm, head, number, seed, steps, 0.0)
        for arm, head in ways
        for number in planes
        for seed in range(seeds)
    ]


def table(results: Sequence[dict[str, Any]], where: str) -> str:
    """Return a line for each way, a column for each number of planes."""
    numbers = sorted({each["planes"] for each in results})
    lines = [f"{where}: mean Dice, {len({each['seed'] for each in results})} seeds; columns are drawn planes"]
    lines.append(f"{'way':<28}{'rate':>9}" + "".join(f"{number:>22}" for number in numbers))
    ways = list(dict.fromkeys((each["arm"], each["head"]) for each in results))
    for arm, head in ways:
        own = [each for each in results if (each["arm"], each["head"]) == (arm, head)]
        name = arm + (", new head" if head == "new" else "")
        rate = f"{own[0]['rate']:.1e}" if own[0]["rate"] else "-"
        lines.append(f"{name:<28}{rate:>9}" + "".join(_cell(own, number, where) for number in numbers))
    copies = "".join(_cell(results, number, f"{where}, copy") for number in numbers)
    lines.append(f"{'nearest drawn plane copied':<28}{'-':>9}" + copies)
    return "\n".join(lines)


def _cell(results: Sequence[dict[str, Any]], planes: int, key: str) -> str:
    values = list({each["seed"]: each[key] for each in results if each["planes"] == planes}.values())
    if not values:
        return f"{'':>22}"
    return f"{statistics.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]".rjust(22)


def run_all() -> None:
    """Read the command, run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="target/abdomen_mr")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--table", action="store_true", help="print what is there, and run nothing")
    chosen = parser.parse_args()
    if chosen.table:
        kept = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(chosen.folder.glob("*.json"))]
        runs = all_runs(chosen.target, chosen.short)
        alike = [each for each in kept if (each["target"], each["steps"]) == (chosen.target, runs[0].steps)]
        numbers = {run.planes for run in runs}
        results = [each for each in at_best_rates(alike) if each["planes"] in numbers]
    else:
        runs = all_runs(chosen.target, chosen.short)
        rates = best_rates(runs, chosen.folder)
        results = perform_all([replace(run, rate=rates.get((run.arm, run.head), 0.0)) for run in runs], chosen.folder)
    order = {name: place for place, name in enumerate(ARMS)}
    results = sorted(results, key=lambda each: (order[each["arm"]], each["head"] != "copied"))
    print("\n\n".join(["", table(results, "undrawn"), table(results, "warps"), CAPTION]))


if __name__ == "__main__":
    run_all()
