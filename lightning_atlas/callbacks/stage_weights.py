"""The weights of each stage, and how far they are from what they were."""

import math
from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils.parametrize import is_parametrized

from lightning_atlas.networks.base import Network, stage_modules

Weights = dict[str, dict[str, Float[Tensor, "..."]]]
"""Stage, name of a parameter, values."""
PARTS = "parametrizations"


def stage_weights(network: Network, left_out: Collection[str] = ()) -> Weights:
    """Return a copy of the weights of each stage as the layers use them, on the CPU; of a sharded one this rank's part.

    A weight that is computed from others (`torch.nn.utils.parametrize`) goes by its layer's own name, so that it can be
    compared with what it was before.

    Args:
        network: Its stages are the keys.
        left_out: Names of parameters that are not wanted.
    """
    stages = network.stages()
    owner = {id(module): stage.name for stage in stages for module in stage_modules(network, stage)}
    bare = {name: stage.name for stage in stages for name in stage.modules}
    found: Weights = {stage.name: {} for stage in stages}
    for prefix, module in network.named_modules():
        if PARTS in prefix.split("."):
            continue
        for leaf, weight in _weights_of(module).items():
            name = f"{prefix}.{leaf}" if prefix else leaf
            stage = owner.get(id(module)) or bare.get(name)
            if stage is not None and name not in left_out:
                found[stage][name] = _part_here(weight)
    return found


def _weights_of(module: nn.Module) -> dict[str, Tensor]:
    own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    computed = list(dict(module.get_submodule(PARTS).named_children())) if is_parametrized(module) else []
    with torch.no_grad():
        return own | {name: getattr(module, name) for name in computed}


def _part_here(weight: Tensor) -> Tensor:
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    return local.detach().to("cpu", torch.float32, copy=True)


def distances(before: Weights, after: Weights, sharded: bool = False) -> dict[str, float | None]:
    """Return ||w - w0|| / ||w0|| over the weights of each stage; `None` where there are none, or all are 0.

    Args:
        before: At the start; what is not there is not counted.
        after: Now.
        sharded: Every process has a part, so that all of them must call this.
    """
    sums = torch.tensor([_squares(before[stage], after[stage]) for stage in before], dtype=torch.double)
    if sharded:
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        sums = sums.to(device)
        torch.distributed.all_reduce(sums)
    return {stage: math.sqrt(moved / whole) if whole else None for stage, (moved, whole) in _named(before, sums)}


def _named(stages: Mapping[str, object], sums: Float[Tensor, "stages 2"]) -> list[tuple[str, list[float]]]:
    return list(zip(stages, sums.tolist(), strict=True))


def _squares(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the squared length of the way, and that of what there was."""
    moved = [float((after[name] - old).double().square().sum()) for name, old in before.items()]
    return math.fsum(moved), math.fsum(float(old.double().square().sum()) for old in before.values())
