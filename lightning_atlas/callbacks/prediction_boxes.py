"""Predicted boxes as files, in millimetres of the world."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_atlas.callbacks.box_report import box_rows
from lightning_atlas.callbacks.prediction import check_apart, check_free, plain_name, whole
from lightning_atlas.callbacks.progress import say
from lightning_atlas.callbacks.seams import case_data, scored
from lightning_atlas.types import Batch, Boxes


def in_world(boxes: Boxes, affine: Float[np.ndarray, "4 4"], classes: tuple[str, ...]) -> dict[str, Any]:
    """Return boxes in millimetres to the right, front and top (RAS).

    A box lies along the axes of the scan's grid, which may be oblique: `axes` are the directions of its three sides,
    `centre_mm` and `size_mm` say where it is and how long they are. `low_mm` and `high_mm` are the corners of the
    smallest box along the axes of the world that holds it.

    Args:
        boxes: In voxels of the grid.
        affine: From the middle of a voxel to the world.
        classes: Their names.
    """
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    told = []
    for *corners, number, score in box_rows(boxes).tolist():
        low, high = np.array(corners[:3]), np.array(corners[3:])
        # A voxel n reaches from n to n + 1, and the affine sends n to its middle.
        centre = affine[:3, :3] @ ((low + high) / 2 - 0.5) + affine[:3, 3]
        reach = np.abs(affine[:3, :3]) @ (high - low) / 2
        places = {
            "centre_mm": centre, "size_mm": (high - low) * steps, "low_mm": centre - reach, "high_mm": centre + reach
        }  # fmt: skip
        rounded = {key: [round(float(each), 3) for each in value] for key, value in places.items()}
        told.append({"class": classes[int(number)], "score": round(score, 6), **rounded})
    axes = (affine[:3, :3] / steps).T.round(6).tolist()
    return {"space": "RAS", "axes": axes, "boxes": told}


def as_text(told: dict[str, Any]) -> str:
    """Return the text of a file: JSON with a line for each box."""
    head = [f'"{key}": {json.dumps(value)},' for key, value in told.items() if key != "boxes"]
    lines = ",\n".join(f"  {json.dumps(box)}" for box in told["boxes"])
    return "\n".join(["{", *head, '"boxes": [', *([lines] if lines else []), "]", "}", ""])


class BoxWriter(Callback):
    """Write the boxes of each scan as `SUBJECT.json`, in millimetres of the world (RAS), the best first.

    Args:
        output: Folder of the files; made if it is not there.
        overwrite: Replace files that are there; otherwise they are an error, before anything is computed.
    """

    def __init__(self, output: Path, overwrite: bool = False) -> None:
        self.output = Path(output)
        self.overwrite = overwrite
        self._written = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check every name before the first scan is computed.

        Raises:
            ValueError: Two scans share a file name, or a file is there already.
        """
        self._written = 0
        names = [f"{plain_name(each)}.json" for each in case_data(trainer).subjects("predict")]
        existing = [name for name in names if (self.output / name).exists()]
        trainer.strategy.barrier("names of predictions")  # every process looks before any process writes
        check_apart(names, "scans", self.output)
        check_free(self.output, existing, len(names), self.overwrite)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Boxes],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the scans of a batch; a file has its name only when it is whole."""
        classes = scored(pl_module).contract.classes
        for subject, boxes, affine in zip(batch["subject"], outputs, batch["affine"], strict=True):
            told = {"subject": subject, **in_world(boxes, affine.double().cpu().numpy(), classes)}
            with whole(self.output / f"{plain_name(subject)}.json") as partial:
                partial.write_text(as_text(told), encoding="utf-8")
            self._written += 1
            if trainer.is_global_zero:
                say(f"{subject}: {len(boxes.corners)} {'box' if len(boxes.corners) == 1 else 'boxes'}")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was written.

        Raises:
            ValueError: No scan was found.
        """
        count = int(trainer.strategy.reduce(torch.tensor(self._written, device=pl_module.device), reduce_op="sum"))
        if count == 0:
            raise ValueError("nothing was predicted: no scan was found in the folder given as --input")
        if trainer.is_global_zero:
            say(f"wrote the boxes of {count} {'scan' if count == 1 else 'scans'} to {self.output}, in mm (RAS)")
