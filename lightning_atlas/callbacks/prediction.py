"""Predictions as files, each on the grid of its scan."""

import json
import re
from collections import Counter
from pathlib import Path

import torch
from jaxtyping import Integer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_atlas.callbacks.progress import say
from lightning_atlas.callbacks.seams import case_data, scored
from lightning_atlas.types import Batch


def file_name(subject: str) -> str:
    """Return the name of a subject's prediction: no separators, nor what Windows refuses.

    Raises:
        ValueError: Nothing of the name is left.
    """
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "_", subject).strip(" ._")
    if not name:
        raise ValueError(f"the subject {subject!r} gives no file name; rename the file or its row in the table")
    return f"{name}.nii.gz"


class PredictionWriter(Callback):
    """Write each prediction as a label map on the grid of the original scan, with `labels.json` beside them.

    Args:
        output: Folder of the written files; made if it is not there.
        overwrite: Replace files that are there; otherwise they are an error, before anything is computed.
    """

    def __init__(self, output: Path, overwrite: bool = False) -> None:
        self.output = Path(output)
        self.overwrite = overwrite
        self._names: list[str] = []
        self._written = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check every name before the first case is computed.

        Raises:
            ValueError: Two subjects share a file name, or a file is there already.
        """
        names = [file_name(subject) for subject in case_data(trainer).subjects("predict")]
        self._names, self._written = names, 0
        # Some file systems do not tell upper from lower case.
        if shared := [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]:
            raise ValueError(f"several subjects would be written to {self.output / shared[0]}; give them other names")
        existing = [name for name in [*names, "labels.json"] if (self.output / name).exists()]
        # Every process looks before any process writes.
        trainer.strategy.barrier("names of predictions")
        if existing and not self.overwrite:
            raise ValueError(
                f"{len(existing)} of {len(names) + 1} files are already in {self.output} ({', '.join(existing[:3])}"
                f"{', ...' if len(existing) > 3 else ''}): take another --output, or say --overwrite"
            )
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"{self.output} is a file; --output takes a folder")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Integer[Tensor, "batch i j k"],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the cases of a batch; a file has its name only when it is whole."""
        self.output.mkdir(parents=True, exist_ok=True)
        for prediction, subject in zip(outputs, batch["subject"], strict=True):
            path = self.output / file_name(subject)
            partial = path.with_name(f".partial-{path.name}")
            restored = case_data(trainer).restore(prediction, subject)
            try:
                restored.save(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            self._written += 1
            if trainer.is_global_zero:
                say(f"segmented {subject} ({self._written} of {-(-len(self._names) // trainer.world_size)})")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the values mean, and print what was written.

        Raises:
            ValueError: No case was found.
        """
        count = trainer.strategy.reduce(torch.tensor(self._written, device=pl_module.device), reduce_op="sum")
        if int(count) == 0:
            raise ValueError("nothing was predicted: no scan was found in the folder given as --input")
        if not trainer.is_global_zero:
            return
        names = ["background", *scored(pl_module).contract.classes]
        values = {str(value): name for value, name in enumerate(names)}
        (self.output / "labels.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        shown = "\n".join(f"  {self.output / name}" for name in self._names[:20])
        more = f"\n  ... and {int(count) - 20} more" if int(count) > 20 else ""
        say(f"wrote {int(count)} predictions and labels.json to {self.output}:\n{shown}{more}")
