"""How far each stage went from the weights that it began with."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from lightning_atlas.callbacks.curves import BLUE, GREY, ORANGE
from lightning_atlas.callbacks.pictures import publish
from lightning_atlas.callbacks.progress import say
from lightning_atlas.callbacks.seams import adapted
from lightning_atlas.callbacks.similarity import LEAST, linear_cka
from lightning_atlas.callbacks.stage_features import stage_features
from lightning_atlas.callbacks.stage_weights import Weights, distances, stage_weights
from lightning_atlas.types import Batch, Image

FLATTENING = ("FSDPStrategy", "DeepSpeedStrategy")
"""Strategies of Lightning under which a stage's parameters cannot be told apart."""
NOT_RESUMED = "features were not compared: the run was resumed, and what they were at its start is not in a checkpoint"
NOT_READ = "distances were not measured: the run was resumed without the file of its weights"


@dataclass(frozen=True)
class StageMovement:
    """How far one stage went.

    Args:
        stage: Its name.
        part: Encoder, decoder or head.
        transferred: Numbers in its parameters that the weights gave.
        distance: ||w - w0|| / ||w0|| over these; `None` where there are none, or it was not measured.
        cka: Linear alignment of its features before and after, 1 where they are the same; `None` where not measured.
        voxels: At which the features were compared.
    """

    stage: str
    part: str
    transferred: int
    distance: float | None
    cka: float | None
    voxels: int


class Movement(Callback):
    """Tell at the end of a fit from weights how far each stage went from them, and how alike its features still are.

    The distance is that of the parameters that the weights gave. The features are those of the first training batch
    of the first process, in evaluation mode, at the same voxels before and after. It costs a copy of the weights in
    ordinary memory and two passes without gradients; the training is the same with it and without.

    Args:
        voxels: Of each stage's features so many at most are compared.
    """

    def __init__(self, voxels: int = 1024) -> None:
        if voxels < LEAST:
            raise ValueError(f"voxels of Movement is {voxels}; at least {LEAST} are needed")
        self.voxels = voxels
        self.result: list[StageMovement] = []
        self._weights: Weights | None = None
        self._image: Image | None = None
        self._features: dict[str, Tensor] = {}
        self._seen = False
        self._hook: RemovableHandle | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See to it that the weights are kept before a checkpoint of a resumed run takes their place."""
        self._seen = False
        if stage == "fit":  # whether it resumes is not known yet
            self._hook = pl_module.register_load_state_dict_pre_hook(self._before_checkpoint)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of what was kept."""
        self._weights, self._image, self._features = None, None, {}
        if self._hook is not None:
            self._hook.remove()

    def _before_checkpoint(self, module: LightningModule, *_: Any) -> None:
        if not self._seen and adapted(module).intake is not None:
            self._keep_weights(module)

    def _keep_weights(self, module: LightningModule) -> None:
        ours = adapted(module)
        self._weights = stage_weights(ours.network, ours.intake.fresh_names)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Keep weights and features of the first batch of a run that begins from weights."""
        if self._seen:
            return
        self._seen = True
        begun_before = trainer.global_step or trainer.ckpt_path
        if not self._wanted(trainer, pl_module) or begun_before or self._reason(trainer):
            return
        if takes_part(trainer, pl_module):
            self._keep_weights(pl_module)
            self._image = batch["image"].detach().clone()
            self._features = self._measure(trainer, pl_module, self._image)

    def _measure(self, trainer: Trainer, module: LightningModule, image: Image) -> dict[str, Tensor]:
        precision = trainer.precision_plugin
        with precision.forward_context():
            return stage_features(adapted(module).network, precision.convert_input(image), self.voxels)

    def _wanted(self, trainer: Trainer, module: LightningModule) -> bool:
        return adapted(module).weights is not None and not getattr(trainer, "fast_dev_run", False)

    def _reason(self, trainer: Trainer) -> str | None:
        name = type(trainer.strategy).__name__
        return f"not measured: {name} keeps the parameters of all stages in one" if name in FLATTENING else None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, after whatever else replaces weights at the end of the training."""
        log_dir = trainer.log_dir  # asks all processes
        if not self._wanted(trainer, pl_module) or not self._seen:
            return
        if takes_part(trainer, pl_module) and not self._reason(trainer):
            self._compare(trainer, pl_module)
        if trainer.is_global_zero:
            self._report(trainer, None if log_dir is None else Path(log_dir), self._notes(trainer))

    def _compare(self, trainer: Trainer, module: LightningModule) -> None:
        network = adapted(module).network
        kept = self._weights or {stage.name: {} for stage in network.stages()}
        far = distances(kept, stage_weights(network), is_sharded(module))
        now = {} if self._image is None else self._measure(trainer, module, self._image)
        self.result = [
            StageMovement(
                stage=stage.name,
                part=stage.part,
                transferred=sum(each.numel() for each in kept[stage.name].values()),
                distance=far[stage.name],
                cka=_alignment(self._features.get(stage.name), now.get(stage.name)),
                voxels=len(now.get(stage.name, ())),
            )
            for stage in network.stages()
        ]

    def _notes(self, trainer: Trainer) -> list[str]:
        if reason := self._reason(trainer):
            return [reason]
        compared = any(each.cka is not None for each in self.result)
        measured = any(each.transferred for each in self.result)
        return [note for note, needed in ((NOT_READ, not measured), (NOT_RESUMED, not compared)) if needed]

    def _report(self, trainer: Trainer, folder: Path | None, notes: Sequence[str]) -> None:
        lines = movement_table(self.result) if self.result else []
        say("\n".join(["", "moved away from the weights:", *lines, *notes]))
        if folder is None or not self.result:
            return
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "weights": adapted(trainer.lightning_module).weights,
            "optimizer_steps": trainer.global_step,
            "notes": list(notes),
            "stages": [asdict(each) for each in self.result],
        }
        (folder / "movement.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        publish(trainer, movement_picture(self.result), folder / "movement.png")


def takes_part(trainer: Trainer, module: LightningModule) -> bool:
    """Return whether this process measures: the first, and where weights are sharded all of them, which must meet."""
    return trainer.is_global_zero or is_sharded(module)


def is_sharded(module: LightningModule) -> bool:
    """Return whether every process has a part of each weight."""
    return any(isinstance(each, DTensor) for each in module.parameters())


def _alignment(before: Tensor | None, after: Tensor | None) -> float | None:
    if before is None or after is None or len(after) < LEAST or len(before) != len(after):
        return None
    value = linear_cka(before, after)
    return None if math.isnan(value) else value


def movement_table(result: Sequence[StageMovement]) -> list[str]:
    """Return a line for each stage, in ASCII."""
    width = max(len("layers"), *(len(each.stage) for each in result))
    lines = [f"{'layers':{width}}  {'from weights':>13}  {'distance':>8}  {'CKA':>6}  {'voxels':>6}"]
    for each in result:
        distance = "-" if each.distance is None else f"{each.distance:.2e}" if each.distance else "0"
        cka = "-" if each.cka is None else f"{each.cka:.3f}"
        voxels = each.voxels or "-"
        lines.append(f"{each.stage:{width}}  {each.transferred:>13,}  {distance:>8}  {cka:>6}  {voxels:>6}")
    return [*lines, "distance: ||w - w0|| / ||w0||; CKA: 1 where the features are as they were, 0 where unrelated."]


def movement_picture(result: Sequence[StageMovement]) -> Figure:
    """Draw distance and alignment of each stage, from input to output."""
    rows = range(len(result))
    figure = Figure(figsize=(7.0, 1.3 + 0.26 * len(result)), dpi=150, facecolor="white")
    far, alike = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.2, right=0.97, top=1 - 0.42 / figure.get_figheight(), wspace=0.08)
    figure.subplots_adjust(bottom=0.55 / figure.get_figheight())
    figure.suptitle("how far each stage moved from its weights", fontsize=11, fontweight="bold")
    far.barh(rows, [each.distance or 0.0 for each in result], color=BLUE, height=0.7)
    alike.plot([each.cka if each.cka is not None else math.nan for each in result], rows, "o-", color=ORANGE, ms=4)
    for row, each in enumerate(result):
        told = {far: "fresh" if not each.transferred else "", alike: "not measured" if each.cka is None else ""}
        for axes, text in told.items():
            axes.text(0.01, row, text, transform=axes.get_yaxis_transform(), fontsize=7, color=GREY, va="center")
    far.set_yticks(rows, [each.stage for each in result], fontsize=8)
    far.invert_yaxis()
    far.set_xlabel("||w - w0|| / ||w0||", fontsize=8)
    alike.set_xlabel("CKA of the features, before and after", fontsize=8)
    alike.set_xlim(min(0.0, *(each.cka or 0.0 for each in result)), 1.02)
    for axes in (far, alike):
        axes.tick_params(labelsize=8)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
