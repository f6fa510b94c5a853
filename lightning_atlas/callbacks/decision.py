"""Decisions about patients, made from segmentations: is there a lesion?"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_atlas.callbacks.layering import looked_up
from lightning_atlas.callbacks.progress import say
from lightning_atlas.callbacks.seams import scored
from lightning_atlas.callbacks.tables import write_rows
from lightning_atlas.decisions import (
    UNKNOWN,
    Accuracy,
    CaseEvidence,
    Evidence,
    accuracy,
    any_lesion,
    evidence as evidence_of,
    per_patient,
)
from lightning_atlas.types import Batch

ANY = "any of them"
SHARES = ("auc", "sensitivity", "specificity", "ppv")


class PatientData(Protocol):
    """A data module that knows whose scans it has."""

    def subjects(self, split: str) -> Sequence[str]:
        """Return the names of a split's cases, in the order of their index."""
        ...

    def patients(self, split: str) -> Sequence[str]:
        """Return whose scan each of a split's cases is, in the order of their index."""
        ...


class PatientDecision(Callback):
    """Decide for each patient of the test from the segmentation whether there is a lesion, and say how good that is.

    A lesion is found where one of its predicted components is large enough, on whatever grid the network has, and
    touches the organ; its score is the highest probability in such components. Of several scans of a patient the
    highest score counts. The table has the area under the ROC curve, sensitivity, specificity and positive predictive
    value, each with a 95 % interval.

    Source: Li et al., "How Well Do Supervised 3D Models Transfer to Medical Imaging Tasks?", 2024,
    https://arxiv.org/abs/2501.11253 (pancreatic tumors).

    Args:
        organ: Class that lesions must touch.
        lesions_mm3: Class -> the least volume of a component that counts, in cubic millimetres.
        judged_on: Class -> pattern of the subjects in which it is looked for, such as `*_venous`; all by default.
    """

    def __init__(self, organ: str, lesions_mm3: dict[str, float], judged_on: dict[str, str] | None = None) -> None:
        if not lesions_mm3 or not all(least >= 0 for least in lesions_mm3.values()):
            raise ValueError(
                f"PatientDecision: lesions_mm3 is {lesions_mm3}; write class: least volume in mm3, such as {{tumor: 5}}"
            )
        if unknown := sorted(set(judged_on or ()) - set(lesions_mm3)):
            raise ValueError(f"PatientDecision: judged_on speaks of {', '.join(unknown)}, which is none of the lesions")
        self.organ = organ
        self.lesions_mm3 = dict(lesions_mm3)
        self.judged_on = dict(judged_on or {})
        self.results: dict[str, Accuracy] = {}
        self._metric: CaseEvidence | None = None
        self._found: Evidence | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget former decisions.

        Raises:
            ValueError: A lesion or the organ is no class of the run.
        """
        classes = scored(pl_module).contract.classes
        if missing := [name for name in (self.organ, *self.lesions_mm3) if name not in classes]:
            raise ValueError(
                f"PatientDecision: {', '.join(missing)} is no class of this run, which has {', '.join(classes)}: "
                "change trainer.callbacks"
            )
        self.results, self._found = {}, None
        module: Any = pl_module
        module.keeps_logits = True
        self._metric = CaseEvidence(len(self.lesions_mm3)).to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look for lesions in each case."""
        module = scored(pl_module)
        classes = list(module.contract.classes)
        columns = [classes.index(name) for name in self.lesions_mm3]
        rows, inside = outputs["prediction"]
        scores = []
        for case in range(len(rows)):
            probability = module.task.probabilities(outputs["logits"][case : case + 1])[0]
            masks = [looked_up(inside[case, :, column], rows[case]).cpu().numpy() for column in columns]
            organ = looked_up(inside[case, :, classes.index(self.organ)], rows[case]).cpu().numpy()
            voxel_mm3 = float(batch["spacing_mm"][case].double().prod())
            found = zip(columns, masks, self.lesions_mm3.values(), strict=True)
            scores.append(
                [
                    evidence_of(probability[column].cpu().numpy(), mask, organ, least_mm3, voxel_mm3)
                    for column, mask, least_mm3 in found
                ]
            )
        if self._metric is not None:
            truth = torch.stack([_truth(batch, case)[columns] for case in range(len(rows))])
            score = torch.tensor(scores, dtype=torch.float32, device=pl_module.device)
            self._metric.update(batch["index"], score, truth.to(pl_module.device))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather all cases, decide for each patient, and log `test/auc/CLASS`."""
        if self._metric is None:
            return
        index, score, truth = (each.numpy() for each in self._metric.compute())
        self._found, self._metric = Evidence(index, score.astype(np.float64), truth), None
        _, score, truth = self._per_patient(trainer)
        columns = {name: (score[:, number], truth[:, number]) for number, name in enumerate(self.lesions_mm3)}
        if len(columns) > 1:
            columns[ANY] = any_lesion(score, truth)
        self.results = {name: accuracy(*column) for name, column in columns.items()}
        for name, found in self.results.items():
            if found.auc[0] == found.auc[0]:
                pl_module.log(f"test/auc/{name.replace(' ', '_')}", found.auc[0], sync_dist=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table, and write it and each patient's scores."""
        log_dir = trainer.log_dir  # asks all processes
        if not self.results or not trainer.is_global_zero:
            return
        say(f"\n{decision_table(self.results, self.lesions_mm3)}")
        if log_dir is None:
            return
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [_row(name, self.lesions_mm3.get(name), found) for name, found in self.results.items()]
        write_rows(folder / "decisions.csv", rows)
        names, score, truth = self._per_patient(trainer)
        write_rows(
            folder / "patients.csv",
            [
                {"patient": name} | {key: value for pair in self._cells(score[row], truth[row]) for key, value in pair}
                for row, name in enumerate(names)
            ],
        )

    def _cells(self, score: np.ndarray, truth: np.ndarray) -> list[list[tuple[str, Any]]]:
        known = {1: 1, 0: 0, UNKNOWN: ""}
        return [
            [(f"{name} score", "" if np.isnan(score[n]) else f"{score[n]:.6g}"), (name, known[int(truth[n])])]
            for n, name in enumerate(self.lesions_mm3)
        ]

    def _per_patient(self, trainer: Trainer) -> tuple[list[str], np.ndarray, np.ndarray]:
        data, found = cast(PatientData, getattr(trainer, "datamodule", None)), self._found
        if found is None:
            return [], np.zeros((0, 0)), np.zeros((0, 0), dtype=int)
        subjects = data.subjects("test")
        patterns = [self.judged_on.get(name, "*") for name in self.lesions_mm3]
        cases = [str(subjects[index]) for index in found.index.tolist()]
        judged = [[fnmatchcase(case, each) for each in patterns] for case in cases]
        return per_patient(found, list(data.patients("test")), np.array(judged).reshape(found.score.shape))


def decision_table(results: Mapping[str, Accuracy], lesions_mm3: Mapping[str, float]) -> str:
    """Return a line for each lesion, in ASCII.

    Args:
        results: How well each is told; may have a line for all together.
        lesions_mm3: The least volume of each that counts.
    """
    names = {name: f"{name} >= {lesions_mm3[name]:g} mm3" if name in lesions_mm3 else name for name in results}
    width = max(len("patients with"), *map(len, names.values()))
    heads = ("AUC", "sensitivity", "specificity", "PPV")
    lines = [f"{'patients with':{width}}  {'n':>9}  " + "  ".join(f"{head:>19}" for head in heads)]
    for name, found in results.items():
        cells = (getattr(found, share) for share in SHARES)
        count = f"{found.positives}/{found.positives + found.negatives}"
        lines.append(f"{names[name]:{width}}  {count:>9}  " + "  ".join(f"{_cell(cell):>19}" for cell in cells))
    return "\n".join([*lines, "n: with the lesion, of all patients of whom it is known; in brackets 95 % intervals."])


def _truth(batch: Batch, case: int) -> Tensor:
    """Return for each class 1 where it was drawn, 0 where it was looked for everywhere and is not there, else -1."""
    rows = torch.bincount(batch["label"][case].flatten().long(), minlength=batch["states"].shape[1]) > 0
    states, drawn = batch["states"][case][rows], batch["drawn"][case][rows]
    present, settled = ((states == 1) & drawn).any(0), (drawn | (states == 0)).all(0)
    return torch.where(present, 1, torch.where(settled, 0, UNKNOWN))


def _cell(value: tuple[float, float, float]) -> str:
    if value[0] != value[0]:
        return "-"
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def _row(name: str, least_mm3: float | None, found: Accuracy) -> dict[str, Any]:
    least = "" if least_mm3 is None else f"{least_mm3:g}"
    row: dict[str, Any] = {
        "lesion": name,
        "least mm3": least,
        "positives": found.positives,
        "negatives": found.negatives,
    }
    for share in SHARES:
        for end, value in zip(("", " low", " high"), getattr(found, share), strict=True):
            row[share + end] = value
    return row
