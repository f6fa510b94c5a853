"""Parameters by stage: which take a gradient, in which group of the optimizer they are, in which mode they stand."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_atlas.networks.base import Network, stage_modules, stage_parameters, stage_tensors


def fresh_stages(network: Network, names: Collection[str]) -> set[str]:
    """Return the stages that hold a parameter among `names`; a fresh counter or statistic does not make one fresh."""
    return {stage.name for stage in network.stages() if not stage_parameters(network, stage).keys().isdisjoint(names)}


def freeze(network: Network, held: Collection[str]) -> set[str]:
    """Let these parameters take no gradient; return the stages in which none takes one.

    Raises:
        ValueError: Nothing would be left to train.
    """
    for name, parameter in network.named_parameters():
        if name in held:
            parameter.requires_grad_(False)
    frozen = {
        stage.name
        for stage in network.stages()
        if not any(parameter.requires_grad for parameter in stage_parameters(network, stage).values())
    }
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"nothing is left to train: the adaptation holds {', '.join(sorted(frozen))}")
    return frozen


def parameters_of(network: Network, stages: Collection[str]) -> set[str]:
    """Return the names of the parameters of some stages."""
    return {name for stage in network.stages() if stage.name in stages for name in stage_parameters(network, stage)}


def rest(network: Network, stages: Collection[str]) -> None:
    """Put these stages in evaluation mode: running statistics stand still and nothing is dropped out."""
    for stage in network.stages():
        if stage.name in stages:
            for module in stage_modules(network, stage):
                module.training = False


def parameter_groups(network: Network, per_tensor: bool = False, **options: Any) -> list[dict[str, Any]]:
    """Return one group for each stage that moves, `{"params": [...], "name": ..., "stage": ...}`, in forward order.

    Each parameter that takes a gradient is in exactly one group, found by identity, in the order of its registration;
    one that several stages share belongs to the first of them.

    Args:
        network: As it is when the optimizer is made: sharding replaces parameters.
        per_tensor: Give each parameter a group of its own, called by its name.
        options: Of every group, such as `weight_decay`.

    Raises:
        ValueError: Nothing moves, or a parameter that takes a gradient is in no stage.
    """
    owner: dict[int, str] = {}
    stages = [stage.name for stage in network.stages()]
    for stage in network.stages():
        for parameter in stage_parameters(network, stage).values():
            owner.setdefault(id(parameter), stage.name)
    groups: dict[tuple[str, str], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in owner:
            raise ValueError(f"{name} takes a gradient and is in no stage of {type(network).__name__}")
        stage = owner[id(parameter)]
        groups.setdefault((stage, name if per_tensor else stage), []).append(parameter)
    if not groups:
        raise ValueError("nothing is left to train: every parameter is held")
    ordered = sorted(groups, key=lambda key: stages.index(key[0]))
    return [{"params": groups[key], "stage": key[0], "name": key[1], **options} for key in ordered]


def stage_table(
    network: Network,
    rates: Mapping[str, Sequence[float]],
    fresh: Collection[str] = (),
    weight_decay: float = 0.0,
) -> str:
    """Return a table of the stages for print.

    Args:
        network: Its stages are the lines; what takes no gradient does not move.
        rates: Learning rate of each stage at the start, at the peak and at the end.
        fresh: Stages that hold parameters which no checkpoint gave.
        weight_decay: Of whatever moves.
    """
    lines = [
        ["layers", "part", "tensors", "parameters", "moves", "rate at start", "peak", "end", "weight decay"],
    ]
    for stage in network.stages():
        parameters = stage_parameters(network, stage).values()
        count = sum(parameter.numel() for parameter in parameters)
        moving = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        moves = "no" if not moving else "yes" if moving == count else f"{moving:,} of them"
        shown = [*(f"{rate:.2e}" for rate in rates[stage.name]), f"{weight_decay:g}"] if moving else ["-"] * 4
        tensors = str(len(stage_tensors(network, stage)))
        moves += ", fresh" if stage.name in fresh else ""
        lines.append([stage.name, stage.part, tensors, f"{count:,}", moves, *shown])
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    words = {0, 1, 4}
    padded = (c.ljust(w) if i in words else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
    return "  ".join(padded).rstrip()
