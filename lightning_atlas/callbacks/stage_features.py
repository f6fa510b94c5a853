"""What the stages of a network compute of an image, at some voxels."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_atlas.networks.base import Network
from lightning_atlas.types import Image

Samples = Float[Tensor, "samples features"]


def stage_features(network: Network, image: Image, voxels: int) -> dict[str, Samples]:
    """Return the features of each stage at some voxels of its output, on the CPU; the network is left as it was.

    A stage's output is that of the last of its modules to run. The voxels are the same whenever the image has the same
    size. Stages that return no features are not there.

    Args:
        network: Runs once, in evaluation mode and without gradients.
        image: On the network's device.
        voxels: At most so many are kept of each stage, over all images of the batch.
    """
    found: dict[str, Samples] = {}
    modules = dict(network.named_modules(remove_duplicate=False))
    named = [(stage.name, modules[name]) for stage in network.stages() for name in stage.modules if name in modules]
    handles = [
        each.register_forward_hook(_keep(found, name, voxels)) for name, module in named for each in _called(module)
    ]
    try:
        with _evaluated(network), isolate_rng(), torch.no_grad():
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _called(module: nn.Module) -> list[nn.Module]:
    """Return what is called of a module: a list of modules never is, its members are."""
    return list(module.children()) if isinstance(module, nn.ModuleList | nn.ModuleDict) else [module]


def _keep(found: dict[str, Samples], name: str, voxels: int) -> Callable[[nn.Module, Any, Any], None]:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = output if isinstance(output, Sequence) else [output]
        if tensors and isinstance(tensors[0], Tensor) and tensors[0].ndim >= 2:
            found[name] = sampled(tensors[0], voxels)  # at once: what follows may write into the output

    return keep


def sampled(features: Float[Tensor, "batch ..."], voxels: int) -> Samples:
    """Return features at some places drawn without replacement; the same for every tensor of that shape.

    Args:
        features: Of a grid, channels first; or of tokens, channels last.
        voxels: At most so many are kept.
    """
    rows = features if features.ndim <= 3 else features.movedim(1, -1)
    grid = rows.shape[:-1]
    places = torch.tensor(random.Random(0).sample(range(grid.numel()), min(voxels, grid.numel())))
    where = torch.unravel_index(places.to(rows.device), grid)
    return rows[where].float().cpu()


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and put back every module's own on leaving."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
