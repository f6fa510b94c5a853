"""Numbers by a formula, as in the scripts that wrote the references of this folder."""

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def fill():
    """Give every number of a network a value that depends on its name and place alone."""

    def fill_network(network: nn.Module) -> nn.Module:
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                phase = sum(place * ord(letter) for place, letter in enumerate(name, 1)) % 997
                wave = torch.sin(0.7 * torch.arange(tensor.numel(), dtype=torch.float64) + phase).view(tensor.shape)
                positive = "norm" in name and name.endswith(("weight", "running_var"))
                tensor.data.copy_(1 + 0.3 * wave if positive else 0.3 * wave)
        return network.double()

    return fill_network


@pytest.fixture
def wave_image():
    def make(channels: int, sides: tuple[int, int, int] = (8, 8, 12)) -> Tensor:
        count = channels * sides[0] * sides[1] * sides[2]
        return torch.cos(0.37 * torch.arange(count, dtype=torch.float64) ** 1.3).view(1, channels, *sides)

    return make
