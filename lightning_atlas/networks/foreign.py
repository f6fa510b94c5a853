"""Any `nn.Module` as a network, from the names of its parts."""

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from lightning_atlas.networks.base import Network, Part, Stage, check_stages
from lightning_atlas.types import Image

RESERVED = (
    *("stages", "size_multiple", "size_offset", "context", "check_size", "conventions", "output_axes", "resize"),
    *("adopted_stages", "adopted_class", "adopted_conventions"),
)


class AdoptedNetwork(Network):
    """What `as_network` adds to the class of a module; the module itself keeps its tensors and their names."""

    adopted_class: ClassVar[type[nn.Module]]
    adopted_stages: tuple[Stage, ...]
    adopted_conventions: dict[str, str]

    def stages(self) -> list[Stage]:
        """Return the parts that were named, each a stage."""
        return list(self.adopted_stages)

    def conventions(self) -> dict[str, str]:
        """Return what `as_volumetric` made of the module's kernels, if it made it."""
        return self.adopted_conventions

    def forward(self, image: Image) -> Tensor:
        """Return what the module itself returns for an image of a size that it takes."""
        self.check_size(image)
        return super().forward(image)

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time, so a pickle (to a spawned process) names the class that it was made from.
        return _blank, (self.adopted_class,), self.__getstate__()


def as_network(
    network: nn.Module,
    encoder: list[str],
    decoder: list[str],
    head: list[str],
    size_multiple: int | tuple[int, int, int] = 1,
) -> Network:
    """Make a network of any module, in place; parameters, state-dict keys and results stay as they are.

    Args:
        network: The module, which takes an image and returns logits on the same grid.
        encoder: Names of its submodules (as in `named_modules`) in forward order, each a stage.
        decoder: The same for the decoder; empty where there is none.
        head: The same for the head; its last convolution or linear layer gives the outputs.
        size_multiple: Each side of an image must be a multiple of this, because the module halves it some times: one
            number, or one for each of i, j, k.

    Raises:
        ValueError: A parameter or buffer is in no stage or in two, a name is not the module's, or the module uses
            a name of `Network` for something else.
    """
    if not isinstance(network, AdoptedNetwork):
        _check_names(network)
        network.__class__ = _adopted(type(network))
    adopted = cast("AdoptedNetwork", network)
    adopted.adopted_stages = (*_stages("encoder", encoder), *_stages("decoder", decoder), *_stages("head", head))
    adopted.adopted_conventions = {}
    adopted.size_multiple = size_multiple
    check_stages(adopted)
    return adopted


def _stages(part: Part, names: Sequence[str]) -> list[Stage]:
    return [Stage(name, part, (name,)) for name in names]


def _check_names(network: nn.Module) -> None:
    name = type(network).__name__
    if isinstance(network, Network):
        raise ValueError(f"{name} names its stages already; give it as the network itself, without `as_network`")
    if taken := [reserved for reserved in RESERVED if hasattr(network, reserved)]:
        raise ValueError(
            f"{name} has its own {', '.join(f'`{each}`' for each in taken)}, which a network needs for something else; "
            f"hold it in a module of your own as `self.inner` and name the parts `inner.<name>`"
        )


@cache
def _adopted(cls: type[nn.Module]) -> type[AdoptedNetwork]:
    content = {"__doc__": cls.__doc__, "__module__": cls.__module__, "adopted_class": cls}
    # A name of its own: recipes find networks by their short names, and MONAI has a UNet too.
    return type(f"Adopted{cls.__name__}", (AdoptedNetwork, cls), content)


def _blank(cls: type[nn.Module]) -> AdoptedNetwork:
    return object.__new__(_adopted(cls))
