"""Pictures a second, and memory, of the R3D that keeps three slices beside its 2D namesake, against multiply-adds.

    python tests/benchmarks/bench_variable_dimension.py [--device cpu] [--depth 18] [--side 224] [--batch 2]
        [--repeats 3] [--threads 1] [ARM ...]

A picture is three slices of one channel to the R3D, and three channels to the ResNet of the same kernels. A training
step is forward, cross-entropy over 1000 classes, backward and SGD. `per MAC` is the 3D arm's share of the namesake's
multiply-adds a second, both with the options named: at 1 the third dimension costs what its arithmetic costs, above 1
less. Multiply-adds are counted as the kernels are published (`all`) and without taps on the zeros beyond the three
slices (`useful`). Every arm is a process of its own, so that peak memory (of the process, or of the device) is its own.

`plain` is torch's convolution, `3D` the library's, which leaves out taps that meet zeros alone; `wide` computes the
three slices as channels of one 2D convolution, whose kernel holds each tap three times or less, beside zeros.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_atlas.networks import R3D, PooledEncoder
from lightning_atlas.networks.depth import Conv3d

SLICES, CLASSES = 3, 1000
OPTIONS = ("", "last", "bf16", "bf16 last", "compiled", "bf16 last compiled")
ARMS = [f"{kind} {options}".strip() for options in OPTIONS for kind in ("2D", "3D")] + [
    "3D plain",
    "3D wide",
    "3D wide last",
    "3D wide bf16 last compiled",
]


class Namesake(R3D):
    """The same kernels without their third axis, as torchvision has them."""

    def __init__(self, depth: int) -> None:
        super().__init__(in_channels=3, depth=depth)  # pyright: ignore[reportArgumentType]
        for name, module in list(self.named_modules()):
            if isinstance(module, Conv3d):
                options = {each: getattr(module, each)[:2] for each in ("kernel_size", "stride", "padding")}
                flat = nn.Conv2d(module.in_channels, module.out_channels, bias=False, **options)
            elif isinstance(module, nn.BatchNorm3d):
                flat = nn.BatchNorm2d(module.num_features)
            elif isinstance(module, nn.MaxPool3d):
                flat = nn.MaxPool2d(3, 2, 1)
            else:
                continue
            self.set_submodule(name, flat)
        self.head = nn.Linear(self.coarse_features, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of each picture."""
        features = self.maxpool(self.opened(image))
        for layer in self.layers():
            features = layer(features)
        return self.head(features.mean((2, 3)))


def wide(self: Conv3d, input: Tensor) -> Tensor:
    """Return the convolution of three slices, computed as channels of one plane."""
    weight, slices = self.weight, input.shape[-1]
    outputs, inputs, *sides, taps = weight.shape
    reach = taps // 2
    flat = input.movedim(4, 1).flatten(1, 2)
    padded = F.pad(weight, (max(0, slices - 1 - reach),) * 2)
    middle = max(reach, slices - 1)
    rows = [padded[..., middle - here : middle - here + slices].movedim(4, 1) for here in range(slices)]
    kernel = torch.stack(rows).reshape(slices * outputs, slices * inputs, *sides)
    found = F.conv2d(flat, kernel, None, self.stride[:2], self.padding[:2])
    return found.unflatten(1, (slices, outputs)).movedim(1, 4)


def plain(self: Conv3d, input: Tensor) -> Tensor:
    """Return torch's own convolution."""
    return nn.Conv3d.forward(self, input)


def multiply_adds(depth: int, side: int) -> dict[str, float]:
    """Return the multiply-adds of a picture in 2D, and in 3D with and without the taps on zeros."""
    found = {"2D": 0.0, "all": 0.0, "useful": 0.0}

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Conv3d)
        cost = module.weight[0].numel() * output.numel()
        if isinstance(module, nn.Conv2d):
            found["2D"] += cost
            return
        reach, taps = module.padding[2], module.kernel_size[2]
        assert isinstance(reach, int)
        met = sum(0 <= place - reach + tap < SLICES for place in range(SLICES) for tap in range(taps))
        found["all"] += cost
        found["useful"] += cost * met / (SLICES * taps)

    with torch.device("meta"), torch.no_grad():
        for network, image in (
            (Namesake(depth), torch.empty(1, 3, side, side)),
            (R3D(depth=depth), torch.empty(1, 1, side, side, SLICES)),  # pyright: ignore[reportArgumentType]
        ):
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Conv3d):
                    module.register_forward_hook(count)
            network.eval()(image)
    return found


def built(arm: str, depth: int, side: int, batch: int, device: str) -> tuple[nn.Module, Tensor]:
    """Return the network of an arm and pictures for it."""
    flat = arm.startswith("2D")
    for name, forward in (("wide", wide), ("plain", plain)):
        if name in arm:
            Conv3d.forward = forward  # this process measures nothing else
    encoder = Namesake(depth) if flat else R3D(depth=depth)  # pyright: ignore[reportArgumentType]
    network = (encoder if flat else PooledEncoder(encoder, CLASSES)).to(device)
    image = torch.rand(batch, 3, side, side, device=device)
    image = image if flat else image.movedim(1, 3).unsqueeze(1)
    if "last" in arm:
        layout = torch.channels_last if flat else torch.channels_last_3d
        network, image = network.to(memory_format=layout), image.contiguous(memory_format=layout)  # pyright: ignore
    return network, image


def seconds(step: Callable[[], object], chosen: argparse.Namespace) -> float:
    """Return the median time of a step; the first ones, which compile, are not counted.

    On a CPU it is the time that the processor worked, so that a busy machine changes little.
    """
    clock, share = (time.process_time, chosen.threads) if chosen.device == "cpu" else (time.perf_counter, 1)
    times = []
    for _ in range(chosen.repeats + 2):
        begin = clock()
        step()
        times.append((clock() - begin) / share)
    return statistics.median(times[2:])


def measure(arm: str, chosen: argparse.Namespace) -> dict[str, float]:
    """Run one arm in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(chosen.threads)
    gpu = chosen.device != "cpu"
    network, image = built(arm, chosen.depth, chosen.side, chosen.batch, chosen.device)
    target = torch.arange(chosen.batch, device=chosen.device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    forward = torch.compile(network) if "compiled" in arm else network

    def logits() -> Tensor:
        with torch.autocast(chosen.device, torch.bfloat16, enabled="bf16" in arm):
            return forward(image)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(logits().float(), target, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        loss.item()  # a number on the host: the device is done

    @torch.no_grad()
    def infer() -> None:
        logits().sum().item()

    network.train()
    training = seconds(train, chosen)
    used = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    network.eval()
    inference = seconds(infer, chosen)
    return {"train": chosen.batch / training, "infer": chosen.batch / inference, "mib": used / 2**20}


def main() -> None:
    """Run the arms one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = f"of: {', '.join(ARMS)}; by default all, on a CPU those that are not compiled"
    parser.add_argument("arms", nargs="*", metavar="ARM", help=told)
    parser.add_argument("--device", default="cpu")
    numbers = {"depth": 18, "side": 224, "batch": 2, "repeats": 3, "threads": 1}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.arm:
        print(json.dumps(measure(chosen.arm, chosen)))
        return
    # On a CPU a compilation takes minutes and gains little.
    arms = chosen.arms or [arm for arm in ARMS if chosen.device != "cpu" or "compiled" not in arm]
    cost = multiply_adds(chosen.depth, chosen.side)
    ratios = {name: cost[name] / cost["2D"] for name in ("all", "useful")}
    costs = "  ".join(f"{name} {cost[name] / 1e9:.2f} G" for name in cost)
    print(f"multiply-adds a picture: {costs}; ratio {ratios['all']:.2f}, useful {ratios['useful']:.2f}")
    print(f"{'arm':28} {'train/s':>8} {'infer/s':>8} {'peak MiB':>9}   slower, per MAC (all, useful) in training")
    given = [f"--device={chosen.device}", *(f"--{name}={getattr(chosen, name)}" for name in numbers)]
    found: dict[str, dict[str, float]] = {}
    for arm in arms:
        command = [sys.executable, __file__, f"--arm={arm}", *given]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{arm:28} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        row = found[arm] = json.loads(done.stdout.splitlines()[-1])
        options = [word for word in arm.split()[1:] if word not in {"plain", "wide"}]
        beside = found.get(" ".join(["2D", *options]))
        told = ""
        if arm.startswith("3D") and beside:
            slower = beside["train"] / row["train"]
            told = f"{slower:6.2f}   {ratios['all'] / slower:.2f}  {ratios['useful'] / slower:.2f}"
        print(f"{arm:28} {row['train']:8.2f} {row['infer']:8.2f} {row['mib']:9.0f}   {told}", flush=True)


if __name__ == "__main__":
    main()
