"""Running statistics of a network whose weights were averaged or merged."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

from lightning_atlas.adaptation.stochastic_norm import StochasticNorm3d
from lightning_atlas.types import Image

Running = nn.BatchNorm1d | nn.BatchNorm3d | nn.SyncBatchNorm | nn.InstanceNorm1d | nn.InstanceNorm3d


def statistic_layers(network: nn.Module) -> dict[str, Running]:
    """Return the layers that normalise by running statistics, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Running) and module.running_mean is not None
    }


def reestimate_statistics(network: nn.Module, images: Iterable[Image], only: Collection[str] | None = None) -> None:
    """Set running statistics to their mean over the batches of training patches; of several processes, over all.

    Weights stand still and nothing is dropped out; the modes of all modules are afterwards as before.

    Source: as `torch.optim.swa_utils.update_bn`. Differs: instance norm with running statistics counts too, all else is
    in evaluation mode, and the processes agree on the result.

    Args:
        network: Changed in place.
        images: Batches, as the network sees them in training.
        only: Names of the layers; by default all that normalise by running statistics.

    Raises:
        ValueError: There is no image, though the network has such layers.
    """
    layers = [layer for name, layer in statistic_layers(network).items() if only is None or name in only]
    if not layers:
        return
    seen = 0
    with _estimating(network, layers), torch.no_grad():
        for seen, image in enumerate(images, start=1):
            for layer in layers:
                layer.momentum = 1 / seen
            network(image)
    if not seen:
        raise ValueError("running statistics are estimated from training patches, and there were none")
    _average_over_processes([each for layer in layers for each in (layer.running_mean, layer.running_var)])


@contextmanager
def _estimating(network: nn.Module, layers: Sequence[Running]) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    chances = [(layer, layer.p) for layer in layers if isinstance(layer, StochasticNorm3d)]
    network.eval()
    for layer in layers:
        layer.train()
        layer.reset_running_stats()
    for layer, _ in chances:
        layer.p = 1.0  # by the batch alone
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, momentum in momenta:
            layer.momentum = momentum
        for layer, p in chances:
            layer.p = p


def _average_over_processes(statistics: list[Tensor | None]) -> None:
    if distributed.is_available() and distributed.is_initialized():
        for each in statistics:
            if each is not None:
                distributed.all_reduce(each)
                each.div_(distributed.get_world_size())
