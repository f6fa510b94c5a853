"""Time and memory of a training step of the three published networks: the published recipe's way, and ours.

    python tests/benchmarks/bench_networks.py [--device cpu] [--side 64] [--batch 1] [--repeats 5] [NETWORK ...]

A step is forward, loss (32 overlapping classes, everything drawn), backward and AdamW. `published` is 32-bit floats
without compilation, with binary cross-entropy and Dice on masks of every class, as MONAI has them; `ours` is the
library's loss, and on a GPU bfloat16, channels last and `torch.compile`. Every arm is a process of its own, so that
peak memory (of the process, or of the device) is its own. On a GPU two hundred further steps compare the two losses.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor, nn

CLASSES = 32
NETWORKS = ("GenesisUNet", "SegResNet", "SwinUNETR")
ARMS = ("published", "ours")


def published_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return binary cross-entropy and Dice on one mask for each class."""
    from monai.losses.dice import DiceLoss

    masks = torch.stack([label == 1 + number for number in range(CLASSES)], 1).float()
    dice = DiceLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=1.0)
    return nn.functional.binary_cross_entropy_with_logits(logits, masks) + dice(logits, masks)


def our_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the same of the library, from the label and its table."""
    from lightning_atlas.inference import SlidingWindow
    from lightning_atlas.tasks import MultiLabelSegmentation

    states = torch.cat([torch.zeros(1, CLASSES), torch.eye(CLASSES)]).to(torch.int8).to(label.device)
    states = states.expand(len(label), -1, -1)
    batch = {"label": label, "states": states, "drawn": states >= 0}
    task = MultiLabelSegmentation(SlidingWindow((32, 32, 32), 0.0))
    return task.loss(logits, batch)["loss"]  # pyright: ignore[reportArgumentType] - all that this loss reads


def measure(name: str, arm: str, device: str, side: int, batch: int, repeats: int, curve: int) -> dict[str, object]:
    """Run one arm in this process."""
    import lightning_atlas.networks as networks

    torch.manual_seed(0)
    network = getattr(networks, name)(in_channels=1, out_channels=CLASSES).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-5)
    image = torch.rand(batch, 1, side, side, side, device=device)
    label = (image[:, 0] * (CLASSES + 1)).long().clamp(max=CLASSES).short()
    ours, gpu = arm == "ours", device != "cpu"
    loss_of = our_loss if ours else published_loss
    if ours and gpu:
        network, image = network.to(memory_format=torch.channels_last_3d), image.contiguous()
    forward = torch.compile(network) if ours and gpu else network

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=ours and gpu):
            logits = forward(image)
        loss = loss_of(logits, label if ours else label.long())
        loss.backward()
        optimizer.step()
        return loss.detach()

    step()
    losses, times = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        losses.append(float(step()))  # a number on the host: the device is done
        times.append(time.perf_counter() - begin)
    losses += [float(step()) for _ in range(curve)]
    used = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"ms": 1000 * statistics.median(times), "mib": used / 2**20, "losses": losses}


def main() -> None:
    """Run the arms one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--curve", type=int, default=0, help="further steps, whose losses are compared")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    options = [chosen.device, chosen.side, chosen.batch, chosen.repeats, chosen.curve]
    if chosen.arm:
        print(json.dumps(measure(chosen.networks[0], chosen.arm, *options)))
        return
    print(f"{'network':12} {'arm':10} {'ms a step':>10} {'ratio':>6} {'peak MiB':>9} {'ratio':>6}  last loss")
    given = [f"--{key}={getattr(chosen, key)}" for key in ("device", "side", "batch", "repeats", "curve")]
    for name in chosen.networks:
        found = {}
        for arm in ARMS:
            command = [sys.executable, __file__, name, f"--arm={arm}", *given]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[arm] = json.loads(done.stdout.splitlines()[-1])
            speed, memory = (found["published"][key] / found[arm][key] for key in ("ms", "mib"))
            shown = f"{found[arm]['ms']:10.1f} {speed:6.2f} {found[arm]['mib']:9.0f} {memory:6.2f}"
            print(f"{name:12} {arm:10} {shown}  {found[arm]['losses'][-1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
