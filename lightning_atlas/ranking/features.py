"""What a network computes at some voxels: before its last layer, at the levels of its decoder, and as outputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from lightning_atlas.networks.base import Network, output_layer
from lightning_atlas.types import Batch, Image

Values = Float[Tensor, "voxels features"]


class Labelled(NamedTuple):
    """Voxels of a window that somebody drew.

    Args:
        places: Where they are in the window.
        states: 1 in the class, 0 not in it, -1 nobody decided; of classes that exclude each other the last column is
            the background.
    """

    places: Integer[Tensor, "voxels 3"]
    states: Integer[Tensor, "voxels classes"]


class Level(NamedTuple):
    """What a level of the decoder computes at some voxels.

    Args:
        features: At each.
        cells: The place on the level's own grid, as one number; several voxels may share it.
    """

    features: Values
    cells: Integer[Tensor, " voxels"]


class Reading(NamedTuple):
    """What a network computes at some voxels.

    Args:
        fine: What its last layer reads.
        levels: By the name of the decoder's stage.
        logits: What it returns.
    """

    fine: Values
    levels: dict[str, Level]
    logits: Values


def draw_voxels(batch: Batch, most: int, exclusive: bool, context: int, generator: torch.Generator) -> Labelled:
    """Draw voxels at random from each class and from the background, of those that somebody decided on.

    Args:
        batch: One window.
        most: Of each class.
        exclusive: The classes exclude each other, so the background is one more.
        context: Voxels at each face of which nothing can be said.
        generator: Draws.
    """
    states, drawn, background = batch["states"][0].long(), batch["drawn"][0], batch["background"][0].long()
    known = torch.where(drawn, states, -1)
    nowhere = torch.where((background == 1) & drawn.all(dim=1), 1, torch.where(background == 0, 0, -1))
    rows = torch.cat([known, nowhere[:, None]], dim=1)
    label = batch["label"][0].long()
    inner = tuple(slice(context, side - context) for side in label.shape)
    found = torch.zeros_like(label, dtype=torch.bool)
    for group in rows.T:
        places = ((group == 1)[label[inner]]).nonzero() + context
        chosen = places[torch.randperm(len(places), generator=generator)[:most]]
        found[tuple(chosen.T)] = True
    places = found.nonzero()
    return Labelled(places, rows[label[tuple(places.T)]][:, : len(rows[0]) - (not exclusive)])


def read_features(network: Network, image: Image, places: Integer[Tensor, "voxels 3"]) -> Reading:
    """Return what a network computes at some voxels of one image.

    Args:
        network: In evaluation mode.
        image: One window, on the network's device.
        places: Voxels that are not in its context.

    Raises:
        ValueError: Its last layer reads no maps.
    """
    with torch.inference_mode(), _captured(network) as seen:
        logits = network(image)
    fine = seen.pop(FINE, None)
    if fine is None or fine.ndim != image.ndim or logits.ndim != image.ndim:
        raise ValueError(f"{type(network).__name__} predicts whole scans; features are ranked voxel by voxel")
    inner = [side - 2 * network.context for side in image.shape[2:]]
    places = places - network.context
    # Levels of a network without padding are larger than what it predicts, by more than their shape tells.
    levels = {name: each for name, each in seen.items() if not network.context or list(each.shape[2:]) == inner}
    return Reading(
        _gather(fine, _cells(fine, places, inner)),
        {name: _level(each, places, inner) for name, each in levels.items()},
        _gather(logits, _cells(logits, places, inner)),
    )


FINE = ""
"""Among the names of stages, what the last layer reads."""


@contextmanager
def _captured(network: Network) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that a forward pass fills: the maps of each stage of the decoder, and what the last layer reads."""
    seen: dict[str, Tensor] = {}
    modules = dict(network.named_modules(remove_duplicate=False))

    def keep(name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.ndim == 5:
            seen[name] = value

    last = modules[output_layer(network)]
    handles = [last.register_forward_pre_hook(lambda _, inputs: keep(FINE, inputs[0]))]
    for stage in network.stages():
        held = [modules[name] for name in stage.modules if name in modules]
        if stage.part == "decoder" and held:
            handles.append(held[-1].register_forward_hook(_keeper(keep, stage.name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _keeper(keep: Any, name: str) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        keep(name, output)

    return hook


def _level(maps: Float[Tensor, "1 features i j k"], places: Integer[Tensor, "voxels 3"], sides: Sequence[int]) -> Level:
    cells = _cells(maps, places, sides)
    return Level(_gather(maps, cells), cells)


def _cells(
    maps: Float[Tensor, "1 features i j k"], places: Integer[Tensor, "voxels 3"], sides: Sequence[int]
) -> Integer[Tensor, " voxels"]:
    """Return for each voxel the cell of a coarser grid in which its middle lies."""
    grid = torch.tensor(maps.shape[2:])
    i, j, k = ((2 * places + 1) * grid // (2 * torch.tensor(sides))).T
    return (i * grid[1] + j) * grid[2] + k


def _gather(maps: Float[Tensor, "1 features i j k"], cells: Integer[Tensor, " voxels"]) -> Values:
    return maps[0].flatten(1)[:, cells.to(maps.device)].T.float().cpu()
