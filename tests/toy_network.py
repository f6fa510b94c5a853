"""A network of five stages with everything that moves when it should not: statistics, counters, dropout."""

import torch
from torch import Tensor, nn

from lightning_atlas.networks.base import Network, Stage


def block(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(channels, out_channels, 3, padding=1), nn.BatchNorm3d(out_channels), nn.Dropout(0.5))


class Toy(Network):
    def __init__(self, outputs: int = 3, width: int = 4) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([block(1, width), block(width, 2 * width)])
        self.decoder = nn.ModuleList([block(2 * width, width), block(width, width)])
        self.head = nn.Conv3d(width, outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        for part in (*self.encoder, *self.decoder, self.head):
            image = part(image)
        return image

    def stages(self) -> list[Stage]:
        return [
            Stage("encoder.0", "encoder", ("encoder.0",)),
            Stage("encoder.1", "encoder", ("encoder.1",)),
            Stage("decoder.0", "decoder", ("decoder.0",)),
            Stage("decoder.1", "decoder", ("decoder.1",)),
            Stage("head", "head", ("head",)),
        ]


def drawn(seed: int, outputs: int = 3, width: int = 4) -> Toy:
    """Build a toy whose every number, statistics and counters included, is drawn from a seed of its own."""
    network = Toy(outputs, width)
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
        else:
            tensor.fill_(seed + 10)
    return network
