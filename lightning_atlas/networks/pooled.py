"""A network that says something of a whole image: an encoder, the summary of its features, and a linear layer."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_atlas.networks.base import Coarse, Encoding, Network, Stage, held_stages
from lightning_atlas.types import Image

Pooling = Literal["mean", "max", "both"]


class PooledEncoder(Network):
    """The encoder of a network, its features pooled over the grid, and a linear layer; the decoder is taken out.

    Its tensors have the names of the network that it holds, behind `backbone.`, so that weights of a segmentation fill
    the encoder; those of the decoder are left over.

    Instance norm takes the mean of each channel away, so that of an encoder that ends in it the mean over the grid says
    little, and the maximum more.

    Args:
        network: Whose encoder is used, such as `UNet`.
        out_channels: Outputs; a run sets them from its classes.
        pooling: What is kept of each channel: its `mean` over the grid, its `max`imum, or `both`.
        dropout: Probability with which a pooled feature is dropped in training.

    Raises:
        ValueError: The network has no encoder that can be used by itself.
    """

    def __init__(
        self, network: Network, out_channels: int = 1, pooling: Pooling = "mean", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not isinstance(network, Encoding):
            raise ValueError(
                f"{type(network).__name__} does not give the features of its encoder, which predictions of whole scans "
                "are made from: set model.init_args.network to one that does, such as UNet, SegResNet or SwinUNETR"
            )
        take_out_decoder(network)
        self.backbone = network
        self.size_offset = network.size_offset
        self.pooling: Pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(network.coarse_features * (2 if pooling == "both" else 1), out_channels)

    @property
    def size_multiple(self) -> int | tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the network that it holds; it changes with the policy along k."""
        return self.backbone.size_multiple

    def stages(self) -> list[Stage]:
        """Return the stages of the encoder, then the head."""
        return [*held_stages(self.backbone), Stage("head", "head", ("head",))]

    def conventions(self) -> dict[str, str]:
        """Return those of the network that it holds."""
        return self.backbone.conventions()

    def check_size(self, image: Image) -> None:
        """Refuse what the network that it holds refuses."""
        self.backbone.check_size(image)

    def forward(self, image: Image) -> Float[Tensor, "batch outputs"]:
        """Return the logits of each image."""
        return self.head(self.dropout(self.pooled(self.backbone.encoded(image))))

    def pooled(self, features: Coarse) -> Float[Tensor, "batch pooled"]:
        """Return what is kept of each channel."""
        flat = features.flatten(2)
        kept = {"mean": (flat.mean(2),), "max": (flat.amax(2),), "both": (flat.mean(2), flat.amax(2))}
        return torch.cat(kept[self.pooling], dim=1)


def take_out_decoder(network: Encoding) -> None:
    """Leave of a network only what its encoder reads; changed in place."""
    rest = [name for stage in network.stages() if stage.part != "encoder" for name in stage.modules]
    buffers = dict(network.named_buffers())
    for name in (*rest, *network.skip_modules):
        if name in buffers:
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, None)
        else:
            network.set_submodule(name, nn.Identity())
