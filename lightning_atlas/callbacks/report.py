"""What a run ends with: the table, the pictures, and where everything is."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from matplotlib.figure import Figure

from lightning_atlas.box_metrics import BoxResult
from lightning_atlas.callbacks import box_report, scan_report
from lightning_atlas.callbacks.baseline import NearestPlaneBaseline
from lightning_atlas.callbacks.curves import History, learning_curves
from lightning_atlas.callbacks.expectation import Expectation, duration
from lightning_atlas.callbacks.layering import looked_up, row_values, topmost
from lightning_atlas.callbacks.memory import in_words, peak_bytes
from lightning_atlas.callbacks.overlay import Scene, overlay
from lightning_atlas.callbacks.pictures import publish
from lightning_atlas.callbacks.progress import say
from lightning_atlas.callbacks.seams import Scored, case_data, scored, voxel_data
from lightning_atlas.callbacks.tables import write_rows
from lightning_atlas.metrics import DiceResult
from lightning_atlas.scan_metrics import ScanResult
from lightning_atlas.types import Batch, Boxes, Prediction

Split = Literal["val", "test"]
NAMES: dict[Split, str] = {"val": "validation", "test": "test"}

FILES = {
    "recipe.yaml": "every setting of the run",
    "environment.txt": "versions and machine",
    "checkpoints/last.ckpt": "the last weights",
    "scores.csv": "the test: a row for each class",
    "cases.csv": "the test: a row for each case",
    "datasets.csv": "the test: a row for each class of each dataset",
    "native_scores.csv": "the test on the scans' own grids: a row for each class",
    "native_cases.csv": "the test on the scans' own grids: Dice of each case",
    "decisions.csv": "the test: how well patients with a lesion are told",
    "patients.csv": "the test: each patient's score and truth",
    "overlay.png": "the test: image, reference and prediction of the first case",
    "validation_scores.csv": "the validation: a row for each class",
    "validation_cases.csv": "the validation: a row for each case",
    "validation_datasets.csv": "the validation: a row for each class of each dataset",
    "validation_overlay.png": "the validation: image, reference and prediction of the first case",
    "predictions.png": "the test: what was predicted over what is true",
    "validation_predictions.png": "the validation: what was predicted over what is true",
    "curves.png": "loss, score and learning rate over the fit",
    "rates.png": "learning rate of each stage over the fit, as planned",
    "taps.json": "planes of kernels that were never trained",
    "movement.json": "how far each stage moved from the weights",
    "movement.png": "the same as a picture",
}
"""What a run's folder may hold, and what each file is."""


@dataclass(frozen=True)
class Shown:
    """The case that the overlay shows."""

    scene: Scene
    subject: str
    index: int


class RunReport(Callback):
    """End a run with a table for each class, an overlay, learning curves, and the paths of all that was written."""

    def __init__(self) -> None:
        self.history = History()
        self._shown: Shown | box_report.ShownBoxes | None = None
        self._start = 0.0
        self._took = ""

    def state_dict(self) -> dict[str, Any]:
        """Return the history, so that a resumed run draws the whole of it."""
        return self.history.to_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds."""
        self.history = History(**state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int
    ) -> None:
        """Keep loss and learning rates."""
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None and trainer.is_global_zero:
            rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
            self.history.add_step(trainer.global_step, loss.detach(), rates)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the fit took, and draw its curves already: a test may not follow."""
        self._took = self._measured(trainer)
        log_dir = trainer.log_dir  # asks all processes
        if log_dir is not None and trainer.is_global_zero:
            self._write_curves(trainer, Path(log_dir))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where everything is, if no score will follow."""
        log_dir, data = trainer.log_dir, trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if not trainer.is_global_zero or not hasattr(data, "has") or data.has("val") or data.has("test"):
            return
        told = "nothing was scored: no case stands in val or test; --data.splits Splits keeps some apart"
        say("\n".join(["", told, "", self._took, "", *(_contents(trainer, Path(log_dir)) if log_dir else [])]))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the case that was shown."""
        self._shown = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the case that was shown."""
        self._shown = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first case for the overlay, but not during a fit."""
        if trainer.state.fn != "fit":
            self._keep(trainer, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first case for the overlay."""
        self._keep(trainer, outputs, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the mean Dice during a fit; report otherwise."""
        if trainer.state.fn != "fit":
            self._report(trainer, scored(pl_module), "val")
        elif not trainer.sanity_checking:
            result = scored(pl_module).results["val"]
            self.history.score = result.headline
            self.history.add_validation(trainer.global_step, result.mean)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self._report(trainer, scored(pl_module), "test")

    def _keep(self, trainer: Trainer, outputs: Any, batch: Batch) -> None:
        # The first, whichever it is: neither the best nor the worst is looked for.
        prediction = outputs["prediction"]
        if self._shown is not None or not trainer.is_global_zero:
            return
        if isinstance(prediction, Prediction):
            self._shown = first_case(batch, prediction)
        elif isinstance(prediction, list) and isinstance(prediction[0], Boxes):
            photograph = scored(trainer.lightning_module).contract.modality == "photograph"
            self._shown = box_report.first_boxes(batch, prediction, photograph)

    def _report(self, trainer: Trainer, module: Scored, split: Split) -> None:
        log_dir = trainer.log_dir  # asks all processes
        if not trainer.is_global_zero:
            return
        result, classes = module.results[split], module.contract.classes
        parts = ["\n".join(["", *_header(trainer, split, len(result.index)), "", result.table(classes)])]
        if isinstance(result, BoxResult):
            boxes = result.per_dataset(case_data(trainer).datasets(split))
            parts.append(f"\n{box_report.dataset_table(boxes)}" if len(boxes) > 1 else "")
        elif isinstance(result, ScanResult):
            datasets = result.per_dataset(case_data(trainer).datasets(split))
            parts.append(f"\n{scan_report.dataset_table(datasets)}" if len(datasets) > 1 else "")
        else:
            parts += self._dice_parts(trainer, result, split)
        parts.append(f"\n{self._took}" if self._took else "")
        say("\n".join(part for part in parts if part))
        if log_dir is None:
            return
        folder, prefix = Path(log_dir), "" if split == "test" else "validation_"
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(result, BoxResult):
            self._write_boxes(trainer, result, split, folder, prefix)
        elif isinstance(result, ScanResult):
            scan_report.write_scans(folder, prefix, result, classes, case_data(trainer).subjects(split))
            title = f"{NAMES[split]}: {result.headline} {result.mean:.3f} on {len(result.index)} cases"
            figure = scan_report.predictions_figure(result, classes, title, _cohort(trainer))
            publish(trainer, figure, folder / f"{prefix}predictions.png")
        else:
            self._write_dice(trainer, result, split, folder, prefix)
        say("\n".join(["", *_contents(trainer, folder)]))

    def _dice_parts(self, trainer: Trainer, result: DiceResult, split: Split) -> list[str]:
        datasets = result.per_dataset(case_data(trainer).datasets(split))
        return [
            f"\n{dataset_table(datasets)}" if len(datasets) > 1 else "",
            *(f"{baseline.NAME}: {_score(baseline)}" for baseline in _baselines(trainer, split)),
            _ceiling(trainer, split),
        ]

    def _write_dice(self, trainer: Trainer, result: DiceResult, split: Split, folder: Path, prefix: str) -> None:
        data, classes = case_data(trainer), scored(trainer.lightning_module).contract.classes
        write_scores(folder / f"{prefix}scores.csv", result, classes, _baselines(trainer, split))
        write_cases(folder / f"{prefix}cases.csv", result, classes, data.subjects(split))
        datasets = result.per_dataset(data.datasets(split))
        if len(datasets) > 1:
            write_datasets(folder / f"{prefix}datasets.csv", datasets, classes)
        if isinstance(self._shown, Shown):
            figure = _overlay(self._shown, result, classes, _cohort(trainer))
            publish(trainer, figure, folder / f"{prefix}overlay.png")

    def _write_boxes(self, trainer: Trainer, result: BoxResult, split: Split, folder: Path, prefix: str) -> None:
        classes = scored(trainer.lightning_module).contract.classes
        box_report.write_boxes(folder, prefix, result, classes, case_data(trainer).subjects(split))
        if isinstance(self._shown, box_report.ShownBoxes):
            title = f"{self._shown.subject}: boxes down to {box_report.RATE:g} false one per image and class"
            figure = box_report.boxes_figure(self._shown, result.least_scores(), classes, title, _cohort(trainer))
            publish(trainer, figure, folder / f"{prefix}overlay.png")

    def _write_curves(self, trainer: Trainer, folder: Path) -> None:
        if self.history.steps:
            figure = learning_curves(self.history, "learning curves", _cohort(trainer))
            publish(trainer, figure, folder / "curves.png")

    def _measured(self, trainer: Trainer) -> str:
        expected = next((each for each in _callbacks(trainer) if isinstance(each, Expectation)), None)
        peak = peak_bytes(trainer.strategy.root_device)
        parts = [
            f"the fit took {duration(time.perf_counter() - self._start)}"
            + (f" (expected {duration(expected.seconds)})" if expected and expected.seconds else "")
        ]
        if peak is not None:
            parts.append(
                f"peak memory {in_words(peak)}"
                + (f" (expected {in_words(expected.memory_bytes)})" if expected and expected.memory_bytes else "")
            )
        return ", ".join(parts)


def first_case(batch: Batch, prediction: Prediction) -> Shown:
    """Return the first case of a batch as it is to be shown; of classes that overlap the last one is seen."""
    scene = Scene(
        image=batch["image"][0, 0].float().cpu().numpy(),
        reference=looked_up(row_values(batch["states"][0]), batch["label"][0]).cpu().numpy(),
        prediction=looked_up(topmost(prediction.inside[0]), prediction.rows[0]).cpu().numpy(),
        spacing_mm=tuple(batch["spacing_mm"][0].tolist()),
    )
    return Shown(scene.to_ras(batch["affine"][0].double().cpu().numpy()), batch["subject"][0], int(batch["index"][0]))


def write_scores(
    path: Path, result: DiceResult, classes: Sequence[str], baselines: Sequence[NearestPlaneBaseline] = ()
) -> None:
    """Write a row for each class and one for their mean; what does not exist is left empty."""
    rows = [dict(row) for row in result.rows(classes)]
    for name in ("reference_ml", "predicted_ml"):
        means = getattr(result, name).nanmean(0)
        for row, value in zip(rows, [*means.tolist(), means.nanmean().item()], strict=True):
            row[name] = value
    for baseline in baselines:
        if baseline.result is not None:
            for row, other in zip(rows, baseline.result.rows(classes), strict=True):
                row[f"dice of {baseline.NAME}"] = other["dice"]
    write_rows(path, rows)


def write_cases(path: Path, result: DiceResult, classes: Sequence[str], subjects: Sequence[str]) -> None:
    """Write each case's Dice; empty where the class is absent from the reference."""
    rows = [
        {"subject": subjects[index], "mean": dice.nanmean().item(), **dict(zip(classes, dice.tolist(), strict=True))}
        for index, dice in zip(result.index.tolist(), result.dice, strict=True)
    ]
    write_rows(path, rows)


def dataset_table(datasets: Mapping[str, DiceResult]) -> str:
    """Return a line for each dataset, in ASCII; the classes that it has are not the others'."""
    width = max(len("dataset"), *(len(name) for name in datasets))
    lines = [f"{'dataset':{width}}  {'Dice':>6}  {'cases':>5}  {'classes':>7}"]
    for name, result in datasets.items():
        dice = "-" if math.isnan(result.mean) else f"{result.mean:.4f}"
        lines.append(f"{name:{width}}  {dice:>6}  {len(result.index):>5}  {int((result.n > 0).sum()):>7}")
    return "\n".join([*lines, "Dice: mean over the cases of the dataset, then over the classes that some of them has."])


def write_datasets(path: Path, datasets: Mapping[str, DiceResult], classes: Sequence[str]) -> None:
    """Write a row for each class that a dataset has drawn, and one for the mean over its classes."""
    rows = []
    for name, result in datasets.items():
        drawn = [*(~result.reference_ml.isnan()).any(0).tolist(), True]
        rows += [{"dataset": name, **row} for row, kept in zip(result.rows(classes), drawn, strict=True) if kept]
    write_rows(path, rows)


def _overlay(shown: Shown, result: DiceResult, classes: Sequence[str], description: str) -> Figure:
    place = result.index.tolist().index(shown.index)
    dice = result.dice[place]
    named = zip(classes, dice.tolist(), strict=True)
    labels = [name if math.isnan(value) else f"{name} ({value:.2f})" for name, value in named]
    title = f"{shown.subject}: mean Dice {dice.nanmean().item():.2f}, each class's below in brackets"
    return overlay(shown.scene, labels, title, description)


def _header(trainer: Trainer, split: Split, cases: int) -> list[str]:
    source = getattr(trainer.lightning_module, "source", None) if trainer.global_step == 0 else None
    given = f"{source['origin']} as it is, without training" if source else None
    scored = trainer.ckpt_path or given or f"the weights after step {trainer.global_step}"
    return [
        f"{NAMES[split]} on {cases} {'case' if cases == 1 else 'cases'}: {_description(trainer)}",
        f"scored: {scored}",
    ]


def _baselines(trainer: Trainer, split: Split) -> list[NearestPlaneBaseline]:
    return [each for each in _callbacks(trainer) if isinstance(each, NearestPlaneBaseline) and split == "test"]


def _score(baseline: NearestPlaneBaseline) -> str:
    if baseline.result is None:
        return f"not scored, {baseline.note}"
    return f"mean Dice {baseline.result.mean:.4f}"


def _ceiling(trainer: Trainer, split: Split) -> str:
    """Return what the network's grid alone costs on the scans' own grids; nothing where it costs nothing."""
    known = [value for value in voxel_data(trainer).ceiling(split).values() if not math.isnan(value)]
    mean = sum(known) / len(known) if known else 1.0
    if mean > 0.9995:
        return ""
    return f"ceiling: the reference itself, sent to the network's grid and back to the scan's, has mean Dice {mean:.4f}"


def _contents(trainer: Trainer, folder: Path) -> list[str]:
    there = {name: meaning for name, meaning in FILES.items() if (folder / name).exists()}
    width = max((len(name) for name in there), default=0)
    quoted = f'"{folder}"' if " " in str(folder) else str(folder)
    lines = [f"in {folder}:", *(f"  {name:{width}}  {meaning}" for name, meaning in there.items())]
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        lines.append(f"curves in a browser:  tensorboard --logdir {quoted}")
    if {"recipe.yaml", "checkpoints/last.ckpt"} <= there.keys():
        lines.append(f"predict other scans:  python -m lightning_atlas predict {quoted} --input DIR --output DIR")
    return lines


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]


def _description(trainer: Trainer) -> str:
    return case_data(trainer).describe()


def _cohort(trainer: Trainer) -> str:
    """Return the first part of the description, which a picture has room for."""
    return _description(trainer).split(";")[0]
