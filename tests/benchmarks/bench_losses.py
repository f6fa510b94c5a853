"""Time of both losses, forward and backward, beside PyTorch's cross-entropy and MONAI's Dice loss: one CPU thread.

Run it as `python tests/benchmarks/bench_losses.py`; ratios are medians of runs that took turns.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from torch import Tensor

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.tasks import Segmentation
from lightning_atlas.types import Batch

CASES, CLASSES, PATCH, RUNS = 2, 28, (64, 64, 48), 9
DRAWN_PLANES = (16, 32)
DRAWN_CLASSES = 10


def make_target() -> Tensor:
    """Return blobs of eight voxels a side: 0 for the background, c+1 for class c."""
    target = torch.randint(0, CLASSES + 1, (CASES, *(side // 8 for side in PATCH)))
    for axis in (1, 2, 3):
        target = target.repeat_interleave(8, axis)
    return target


def make_batch(target: Tensor, drawn_classes: int) -> Batch:
    """Return rows 1 + target; of the classes beyond those drawn it is only known what others leave over."""
    states = torch.cat([torch.full((1, CLASSES), -1), torch.zeros(1, CLASSES), torch.eye(CLASSES)]).to(torch.int8)
    leftover = torch.tensor([1, *range(2 + drawn_classes, CLASSES + 2)])
    states[leftover, drawn_classes:] = -1 if drawn_classes < CLASSES else states[leftover, drawn_classes:]
    drawn = (torch.arange(CLASSES) < drawn_classes).repeat(CLASSES + 2, 1)
    drawn[0] = False
    background = torch.tensor([-1, 1] + [0] * CLASSES, dtype=torch.int8)
    background[leftover] = 1 if drawn_classes == CLASSES else -1
    return Batch(
        image=torch.zeros(CASES, 1, *PATCH),
        label=(target + 1).to(torch.uint8),
        states=states.repeat(CASES, 1, 1),
        drawn=drawn.repeat(CASES, 1, 1),
        background=background.repeat(CASES, 1),
        spacing_mm=torch.ones(CASES, 3),
        affine=torch.eye(4).repeat(CASES, 1, 1),
        index=torch.arange(CASES),
        subject=["blobs"] * CASES,
        seed=torch.arange(CASES),
    )


def seconds(loss: Callable[[Tensor], Tensor], logits: Tensor) -> float:
    """Return the time of one forward and backward pass."""
    leaf = logits.clone().requires_grad_()
    begin = time.perf_counter()
    loss(leaf).backward()
    return time.perf_counter() - begin


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logits, target, task = torch.randn(CASES, CLASSES + 1, *PATCH), make_target(), Segmentation(SlidingWindow())
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True)
    dense, sparse = make_batch(target, CLASSES), make_batch(target, CLASSES)
    undrawn = torch.ones(PATCH[2], dtype=torch.bool)
    undrawn[list(DRAWN_PLANES)] = False
    sparse["label"][..., undrawn] = 0
    batches = {
        "all drawn": dense,
        f"{len(DRAWN_PLANES)} planes of {PATCH[2]} drawn": sparse,
        f"{DRAWN_CLASSES} classes of {CLASSES} drawn": make_batch(target, DRAWN_CLASSES),
    }
    print(f"logits {tuple(logits.shape)}, {torch.get_num_threads()} thread, median of {RUNS} runs")
    print(f"{'':24}  {'ours, ms':>9}  {'ordinary, ms':>12}  {'ratio':>5}")
    for name, batch in batches.items():
        runs = [
            (
                seconds(lambda leaf, batch=batch: task.loss(leaf, batch)["loss"], logits),
                seconds(lambda leaf: F.cross_entropy(leaf, target) + dice(leaf, target[:, None]), logits),
            )
            for _ in range(RUNS)
        ]
        ours, ordinary = (statistics.median(run[side] for run in runs) * 1000 for side in (0, 1))
        ratio = statistics.median(run[0] / run[1] for run in runs)
        print(f"{name:24}  {ours:9.0f}  {ordinary:12.0f}  {ratio:5.2f}")


if __name__ == "__main__":
    main()
