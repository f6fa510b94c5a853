"""An L2 penalty on chosen kernels, which an optimizer's weight decay cannot tell from the others."""

from fnmatch import fnmatch
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

ENDINGS = (".weight", ".parametrizations.weight.original")
"""What follows a layer in the name of its kernel: as built, and under `torch.nn.utils.parametrize`."""


class KernelPenalty(Callback):
    """Draws chosen kernels to zero: `weight` times the sum of their squares, as Keras's `l2` regularizer.

    Its gradient is added before clipping; the logged loss leaves it out. Biases are never drawn, nor a kernel that
    stands still while a low-rank update of it moves (`LoRA`).

    Source: Humpire-Mamani et al. 2023: 3e-5 on the first convolution of each level, `encoder.*.0` and `decoder.*.0` of
    `ValidUNet`.

    Args:
        layers: Names of layers, or patterns of them such as `encoder.*.0`.
        weight: Of the sum of squares in the loss.
    """

    def __init__(self, layers: list[str], weight: float = 3.0e-5) -> None:
        if not weight >= 0:
            raise ValueError(f"weight of KernelPenalty is {weight}; it must be 0 or more")
        self.layers = layers
        self.weight = weight

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse patterns that name nothing.

        Raises:
            ValueError: The network has no such layer with a kernel.
        """
        kernels = self._kernels(pl_module)
        for pattern in self.layers:
            if not any(fnmatch(name, pattern) for name in kernels):
                raise ValueError(
                    f"KernelPenalty: no layer of {type(_network(pl_module)).__name__} is called {pattern!r}; it has "
                    f"{', '.join(list(self._kernels(pl_module, everything=True))[:8])} ..."
                )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Add the gradient of the penalty to that of each chosen kernel that moves."""
        with torch.no_grad():
            for kernel in self._kernels(pl_module).values():
                if kernel.grad is not None:
                    kernel.grad.add_(kernel, alpha=2 * self.weight)

    def _kernels(self, module: LightningModule, everything: bool = False) -> dict[str, torch.nn.Parameter]:
        """Return the kernels of the chosen layers by the layer's name."""
        kernels = {
            name.removesuffix(ending): each
            for name, each in _network(module).named_parameters()
            for ending in ENDINGS
            if name.endswith(ending) and each.ndim > 1
        }
        return {
            name: each
            for name, each in kernels.items()
            if everything or any(fnmatch(name, pattern) for pattern in self.layers)
        }


def _network(module: LightningModule) -> torch.nn.Module:
    return module.get_submodule("network")
