"""What every network that finds boxes answers for the task."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_atlas.networks.base import Network, Pyramid
from lightning_atlas.networks.pooled import take_out_decoder
from lightning_atlas.networks.res_unet import PyramidDecoding
from lightning_atlas.types import Boxes, Image

BACKGROUND = "background"


class Detector(Network):
    """A network that finds boxes; whatever has weights is computed in `forward`."""

    planar: bool = False
    """It finds boxes in the plane of i and j, which reach over the whole depth of the image."""
    class_bias: str = ""
    """Name of the bias from which the logits of the classes start, where there is one."""

    @property
    def classes(self) -> int:
        """How many classes it tells apart; background is none of them."""
        raise NotImplementedError

    def output_names(self, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return of each tensor of `output_axes` the class, or `BACKGROUND`, of each of its entries, were they these.

        Args:
            classes: In order, without background; as many as there are, or another number.
        """
        return {}

    def forward(self, image: Image, truth: list[Boxes] | None = None) -> Any:
        """Return what `losses` and `found` read.

        Args:
            image: Of each image of the batch.
            truth: The boxes to be learned, in training, where the network chooses by them what it looks at.
        """
        raise NotImplementedError

    def losses(self, answer: Any, truth: list[Boxes]) -> dict[str, Tensor]:
        """Return the parts of the loss, which are to be added up.

        Args:
            answer: What `forward` returned.
            truth: The boxes of each image; an image may have none.
        """
        raise NotImplementedError

    def found(self, answer: Any) -> list[Boxes]:
        """Return the boxes of each image, inside it and with scores, best first; overlapping ones are suppressed."""
        raise NotImplementedError


def pyramid_of(network: Network, holder: str) -> Pyramid:
    """Return a network without its decoder; of one that decodes a pyramid, the pyramid.

    Args:
        network: Changed in place.
        holder: Named in the error.

    Raises:
        ValueError: It does not give its features on several grids.
    """
    if isinstance(network, PyramidDecoding):
        network = network.backbone
    if not isinstance(network, Pyramid):
        raise ValueError(
            f"{holder} looks for boxes on several grids of an encoder, and {type(network).__name__} does not give "
            "those: set model.init_args.network.init_args.network to one that does, such as UNet, SegResNet or R3D"
        )
    take_out_decoder(network)
    return network


def chosen_levels(network: Pyramid, levels: Sequence[int]) -> list[int]:
    """Return which grids of an encoder are used, the finest first, counted from the finest.

    Args:
        network: With the grids.
        levels: As given; those below 0 count from the coarsest.

    Raises:
        ValueError: There are no such grids, or the coarsest is not among them.
    """
    count = len(network.level_features)
    wanted = sorted({level + count if level < 0 else level for level in levels})
    if not wanted or wanted[0] < 0 or wanted[-1] != count - 1:
        raise ValueError(
            f"levels {list(levels)} do not fit {type(network).__name__}, which has levels 0 (the finest) to "
            f"{count - 1}: name some of these, and {count - 1}, since what lies behind the last one would learn nothing"
        )
    return wanted
