"""Predictions as files, each on the grid of its scan."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Bool
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_atlas.callbacks.layering import looked_up, topmost
from lightning_atlas.callbacks.progress import say
from lightning_atlas.callbacks.seams import Restored, case_data, scored, voxel_data
from lightning_atlas.types import Batch, Prediction

MASKS, COMBINED, VALUES = "segmentations", "combined_labels.nii.gz", "labels.json"
"""Of a subject's folder, as AbdomenAtlas has them: a mask for each class, and a label map; and what its values mean."""
PARTIAL, REPLACED = ".partial-", ".replaced-"


def plain_name(name: str) -> str:
    """Return a name as a file or folder may have it: no separators, nor what Windows refuses.

    Raises:
        ValueError: Nothing of the name is left.
    """
    plain = re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "_", name).strip(" ._")
    if not plain:
        raise ValueError(f"the name {name!r} gives no file name; rename the file or its row in the table")
    return plain


def file_name(name: str) -> str:
    """Return the name of the file of a subject or class; see `plain_name`."""
    return f"{plain_name(name)}.nii.gz"


class PredictionWriter(Callback):
    """Write each prediction on the grid of the original scan.

    Classes that exclude each other become one label map for each subject. Classes that overlap become a folder for each
    subject with a mask file for each class in `segmentations`, as AbdomenAtlas and TotalSegmentator have them, and with
    `combined_labels.nii.gz`, in which later classes of the recipe lie on top: to be looked at, not to be measured.
    `labels.json` says what the values of label maps mean.

    Args:
        output: Folder of the written files; made if it is not there.
        overwrite: Replace files that are there; otherwise they are an error, before anything is computed.
    """

    def __init__(self, output: Path, overwrite: bool = False) -> None:
        self.output = Path(output)
        self.overwrite = overwrite
        self._names: list[str] = []
        self._classes: list[str] = []
        self._written = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check every name before the first case is computed.

        Raises:
            ValueError: Two subjects or classes share a file name, or a file is there already.
        """
        contract = scored(pl_module).contract
        subjects = case_data(trainer).subjects("predict")
        self._classes = list(contract.classes) if contract.overlapping else []
        names = [plain_name(each) if contract.overlapping else file_name(each) for each in subjects]
        self._names, self._written = names, 0
        check_apart(names, "subjects", self.output)
        check_apart([file_name(each) for each in self._classes], "classes", self.output)
        inner = ("/" + MASKS, "/" + COMBINED) if contract.overlapping else ("",)
        written = [*(name + each for name in names for each in inner), VALUES]
        existing = [name for name in written if (self.output / name).exists()]
        strangers = [path for name in names if self._classes for path in self._strangers(name)]
        # Every process looks before any process writes.
        trainer.strategy.barrier("names of predictions")
        check_free(self.output, existing, len(written), self.overwrite)
        if strangers:
            raise ValueError(f"{strangers[0]} is a mask of no class of this run; take another --output")

    def _strangers(self, name: str) -> list[Path]:
        """Return the files among a subject's masks that are no mask of this run: they are not replaced."""
        ours = {file_name(each) for each in self._classes}
        there = self.output / name / MASKS
        found = sorted(there.iterdir()) if there.is_dir() else []
        return [each for each in found if each.name not in ours and not each.name.startswith(".")]

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Prediction,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the cases of a batch; a file or a folder of masks has its name only when it is whole."""
        for rows, inside, subject in zip(*outputs, batch["subject"], strict=True):
            restored = voxel_data(trainer).restore(rows, subject)
            if self._classes:
                write_masks(self.output / plain_name(subject), restored, inside.cpu(), self._classes)
            else:
                write_whole(self.output / file_name(subject), restored)
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
        self.output.mkdir(parents=True, exist_ok=True)
        names = ["background", *scored(pl_module).contract.classes]
        values = {str(value): name for value, name in enumerate(names)}
        (self.output / VALUES).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        shown = "\n".join(f"  {self.output / name}" for name in self._names[:20])
        more = f"\n  ... and {int(count) - 20} more" if int(count) > 20 else ""
        say(f"wrote {int(count)} predictions and {VALUES} to {self.output}:\n{shown}{more}")
        if self._classes:
            say(
                f"each folder has {len(self._classes)} masks in {MASKS}; {COMBINED} shows them in one picture, "
                "later classes on top: measure the masks"
            )


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file has its own name only when it is whole. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, restored: Restored) -> None:
    """Write a volume; the file has its name only when it is whole."""
    with whole(path) as partial:
        restored.save(partial)


def write_masks(folder: Path, restored: Restored, inside: Bool[Tensor, "rows classes"], classes: Sequence[str]) -> None:
    """Write a mask for each class and what is seen of them in one label map; former ones are replaced.

    Args:
        folder: Of the subject.
        restored: Rows of the prediction on the file's grid; holds other values afterwards.
        inside: The table of these rows.
        classes: Names of the columns.
    """
    rows, masks = restored.data[0], folder / MASKS
    partial, former = (masks.with_name(f"{kind}{MASKS}") for kind in (PARTIAL, REPLACED))
    _settle(masks, former)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, column in zip(classes, inside.unbind(1), strict=True):
            restored.set_data(looked_up(column.to(torch.uint8), rows)[None])
            restored.save(partial / file_name(name))
        seen = topmost(inside).to(torch.uint8 if len(classes) < 2**8 else torch.int16)
        restored.set_data(looked_up(seen, rows)[None])
        write_whole(folder / COMBINED, restored)
        if masks.exists():
            masks.replace(former)
        partial.replace(masks)
    finally:
        _settle(masks, former)
        shutil.rmtree(partial, ignore_errors=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _settle(masks: Path, former: Path) -> None:
    """Put former masks back where the new ones did not get to their place; remove them otherwise."""
    if former.exists() and not masks.exists():
        former.replace(masks)
    shutil.rmtree(former, ignore_errors=True)


def check_apart(names: Sequence[str], what: str, output: Path) -> None:
    """Refuse two predictions that would have one file name.

    Raises:
        ValueError: Names the file.
    """
    # Some file systems do not tell upper from lower case.
    if shared := [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]:
        raise ValueError(f"several {what} would be written to {output / shared[0]}; give them other names")


def check_free(output: Path, existing: Sequence[str], count: int, overwrite: bool) -> None:
    """Refuse a folder for predictions that is none, or has such files already.

    Args:
        output: The folder.
        existing: Those of the files to be written that are there.
        count: How many files are to be written.
        overwrite: They may be replaced.

    Raises:
        ValueError: Says what is there.
    """
    if existing and not overwrite:
        raise ValueError(
            f"{len(existing)} of {count} files are already in {output} ({', '.join(existing[:3])}"
            f"{', ...' if len(existing) > 3 else ''}): take another --output, or say --overwrite"
        )
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; --output takes a folder")
