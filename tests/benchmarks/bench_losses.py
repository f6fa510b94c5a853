"""Time and peak memory of cross-entropy and Dice, forward and backward, beside MONAI's losses on the same input.

Run it as `python tests/benchmarks/bench_losses.py`. On a CPU: one thread, its own time (not the wall's, since others
may use the machine), medians over rounds in which the arms took turns, and how far a process of each arm grows beyond
its input. On a GPU, where there is one: wall time of our losses under `torch.compile`, and allocated memory.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceCELoss, DiceLoss
from torch import Tensor

from lightning_atlas.losses import sigmoid_losses, softmax_losses

CASES, OUTPUTS, SIDE = 2, 32, 96
DRAWN_CLASSES, PLANES_APART = 10, 5
ORDINARY = {"softmax": "DiceCELoss(softmax)", "sigmoid": "DiceLoss(sigmoid) + BCE"}
OURS = ["all drawn", f"every {PLANES_APART}th plane", f"{DRAWN_CLASSES} classes drawn"]

Loss = Callable[[Tensor], Tensor]
"""Logits -> a scalar."""


def make_target(device: str) -> Tensor:
    """Return blobs of eight voxels a side: 0 for the background, c+1 for class c."""
    target = torch.randint(0, OUTPUTS, (CASES, *[SIDE // 8] * 3))
    for axis in (1, 2, 3):
        target = target.repeat_interleave(8, axis)
    return target.to(device)


def make_tables(classes: int, drawn_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tables for rows 1 + target; of undrawn classes it is only known what the drawn ones leave over."""
    states = torch.cat([torch.full((1, classes), -1), torch.zeros(1, classes), torch.eye(classes)]).to(torch.int8)
    drawn = (torch.arange(classes) < drawn_classes).repeat(classes + 2, 1)
    drawn[0] = False
    background = torch.tensor([-1, 1] + [0] * classes, dtype=torch.int8)
    if drawn_classes < classes:
        leftover = torch.tensor([1, *range(2 + drawn_classes, classes + 2)])
        states[leftover, drawn_classes:] = -1
        background[leftover] = -1
    return states.repeat(CASES, 1, 1), drawn.repeat(CASES, 1, 1), background.repeat(CASES, 1)


def ordinary_loss(kind: str, device: str) -> Loss:
    """Return MONAI's loss; the volume per class that its sigmoid needs counts as input."""
    target = make_target(device)[:, None]
    if kind == "softmax":
        both = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
        return lambda logits: both(logits, target)
    volumes = (target == torch.arange(1, OUTPUTS + 1, device=device).view(-1, 1, 1, 1)).float()
    dice, cross_entropy = DiceLoss(sigmoid=True), torch.nn.BCEWithLogitsLoss()
    return lambda logits: dice(logits, volumes) + cross_entropy(logits, volumes)


def our_loss(kind: str, arm: str, device: str) -> Loss:
    """Return the mean of cross-entropy and Dice over the cases."""
    label = (make_target(device) + 1).to(torch.uint8)
    if arm == OURS[1]:
        label[..., torch.arange(SIDE, device=device) % PLANES_APART != 0] = 0
    classes = OUTPUTS - (kind == "softmax")
    tables = make_tables(classes, DRAWN_CLASSES if arm == OURS[2] else classes)
    states, drawn, background = (each.to(device) for each in tables)

    def loss(logits: Tensor) -> Tensor:
        if kind == "softmax":
            found = softmax_losses(logits, label, states, drawn, background)
            return (found["cross_entropy"] + found["dice"]).mean()
        found = sigmoid_losses(logits, label, states, drawn)
        return (found["binary_cross_entropy"] + found["dice"]).mean()

    return loss if device == "cpu" else torch.compile(loss)


def make_loss(kind: str, arm: str, device: str) -> Loss:
    """Return a loss on blobs that are the same for every arm."""
    torch.manual_seed(0)
    return ordinary_loss(kind, device) if arm in ORDINARY.values() else our_loss(kind, arm, device)


def exact_loss(kind: str, logits: Tensor) -> float:
    """Return what the losses are where all is drawn, in float64 and one case at a time."""
    torch.manual_seed(0)
    target, values = make_target("cpu"), []
    for case, truth in zip(logits.detach(), target, strict=True):
        exact = case.double()
        if kind == "softmax":
            p, inside = exact.softmax(0)[1:], [truth == 1 + c for c in range(OUTPUTS - 1)]
            cross_entropy = F.cross_entropy(exact[None], truth[None])
        else:
            p, inside = exact.sigmoid(), [truth == 1 + c for c in range(OUTPUTS)]
            cross_entropy = F.binary_cross_entropy_with_logits(exact, torch.stack(inside).double())
        dice = [
            1 - 2 * each[where].sum() / (each.sum() + where.sum()) if where.any() else each.new_zeros(())
            for each, where in zip(p, inside, strict=True)
        ]
        values.append(cross_entropy + torch.stack(dice).mean())
    return torch.stack(values).mean().item()


def seconds(loss: Loss, leaf: Tensor) -> float:
    """Return the time of one forward and backward pass."""
    leaf.grad, clock = None, time.process_time if leaf.device.type == "cpu" else synchronized
    begin = clock()
    loss(leaf).backward()
    return clock() - begin


def synchronized() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_mib(kind: str, arm: str, device: str) -> float:
    """Return how much more than its input an arm needs; on a CPU in a process that does nothing else."""
    loss, leaf = make_loss(kind, arm, device), torch.randn(CASES, OUTPUTS, *[SIDE] * 3, device=device).requires_grad_()
    if device != "cpu":
        loss(leaf)  # compiled
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(leaf).backward()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss(leaf).backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def peak_mib_alone(kind: str, arm: str, device: str) -> float:
    """Return `peak_mib` of a process of its own."""
    command = [sys.executable, __file__, "--memory", kind, arm, device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", nargs=3, metavar=("KIND", "ARM", "DEVICE"), help="print the memory of one arm")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory:
        print(peak_mib(*given.memory))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"
    arms = {kind: [ordinary, *OURS] for kind, ordinary in ORDINARY.items()}
    # First, since a process begins with the peak of the one that started it.
    memory = {(kind, arm): peak_mib_alone(kind, arm, device) for kind in arms for arm in arms[kind]}
    logits = torch.randn(CASES, OUTPUTS, *[SIDE] * 3, device=device).requires_grad_()
    print(f"logits {tuple(logits.shape)}, {name}, median of {given.rounds} rounds")
    print(f"{'':8} {'':24} {'ms':>7} {'ratio':>6} {'peak MiB':>9} {'ratio':>6}")
    for kind, ordinary in ORDINARY.items():
        losses = {arm: make_loss(kind, arm, device) for arm in arms[kind]}
        for loss in losses.values():
            loss(logits).backward()
        rounds = [{arm: seconds(loss, logits) for arm, loss in losses.items()} for _ in range(given.rounds)]
        for arm in losses:
            milliseconds = 1000 * statistics.median(each[arm] for each in rounds)
            ratio = statistics.median(each[arm] / each[ordinary] for each in rounds)
            mib = memory[kind, arm]
            share = mib / memory[kind, ordinary]
            print(f"{kind:8} {arm:24} {milliseconds:7.0f} {ratio:6.2f} {mib:9.0f} {share:6.2f}")
        error = abs(losses[OURS[0]](logits).item() - exact_loss(kind, logits.cpu()))
        print(f"{kind:8} distance to the loss in float64: {error:.1e}", flush=True)


if __name__ == "__main__":
    main()
