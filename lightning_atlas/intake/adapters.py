"""What a recipe asks of weights that do not fit as they are: other channels, kernels, positions, or fewer blocks."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lightning_atlas.contract import Contract
from lightning_atlas.intake.channels import How, kernel_by_name, kernel_for_channels
from lightning_atlas.intake.inflation import Taken

Kernel = Float[Tensor, "outputs inputs i j k"]
Size = tuple[int, int, int]
Fits = Callable[[str, str], bool]

NUMBERED = re.compile(r"(.*?)(\d+)")
"""The name of a module that is one of several: what they share, and its number."""
MOST_TOKENS = 4
"""Tokens that may stand before those of the grid, such as one for the class."""


class Pair(NamedTuple):
    """A tensor of a file and the one of the network that it would fill.

    Args:
        name: In the network.
        tensor: Of the file.
        target: Of the network, as initialised.
        image_channels: Channels of the image in the file and in the network; `None` where the file does not show them.
        channel_names: Their names in the file and here, of a tensor in the first stage; empty where they are not known.
        planar: The tensor is of a file of 2D kernels, and the target the kernel of a 2D convolution along i and j.
    """

    name: str
    tensor: Tensor
    target: Tensor
    image_channels: tuple[int, int] | None
    channel_names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    planar: bool = False


class Adapter:
    """A rule for weights that a network cannot take as they are. Each changes one thing; several act in turn."""

    meets: ClassVar[tuple[str, ...]] = ()
    """Keys of the contract in which data and weights may differ, because this rule is there for it."""

    def take(self, pair: Pair) -> Taken | None:
        """Return the tensor of the file changed, and how; `None` where the rule has nothing to say."""
        return None

    def donors(self, targets: Collection[str], given: Collection[str], fits: Fits) -> dict[str, str]:
        """Return names of the network that the file lacks, each with the name of the tensor to take in its place.

        Args:
            targets: The network's names.
            given: Names that the file's tensors have in the network.
            fits: Name of the network, name in the file -> whether the one can be filled by the other.
        """
        return {}

    def stated(self, contract: Contract | None) -> Contract | None:
        """Return what weights expect of an image, with what this rule knows of it besides."""
        return contract

    def named(self, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all tensors of the file under the names that they have in the network.

        Args:
            tensors: By the file's names.
            targets: The network's, as initialised.
        """
        return dict(tensors)

    def made(self, targets: Mapping[str, Tensor], given: Collection[str]) -> dict[str, Taken]:
        """Return tensors of the network that need no file, and how they were made.

        Args:
            targets: The network's, as initialised.
            given: Names that the file's tensors have in the network.
        """
        return {}

    def check(self, left_over: Mapping[str, Tensor]) -> None:
        """Refuse tensors of the file that nothing took, where this rule was to have all of them taken."""


@dataclass(frozen=True)
class InputChannels(Adapter):
    """Take kernels that read an image of other channels.

    A channel that the contracts of weights and data call alike takes the kernel of its name, in whatever order they
    stand. For the others, `repeat`, where there are not fewer channels than in the file: they take in turn the file's
    channels that no name takes, or all where there are none. `mean`: they take the mean of these; where there are no
    others, all channels share what no name takes. With both, each of the file's channels is divided among those that
    take it, so that an image whose channels are all the same is answered as before. `zero`: they are 0, so that an
    image is answered as before whatever they hold; channels that the network lacks are left out, which answers as if
    they were 0. Where no name is shared, `zero` takes the first channels as they are.

    Args:
        how: `repeat`, `mean` or `zero`.
    """

    meets: ClassVar[tuple[str, ...]] = ("channels",)
    how: How = "repeat"

    def take(self, pair: Pair) -> Taken | None:
        """Return a kernel that reads the image; other layers are left alone.

        Raises:
            ValueError: There are fewer channels, which cannot be repeated; or as many channels in another order as the
                first layer has outputs, so that nothing tells the kernels behind it from those that read the image.
        """
        if pair.tensor.ndim < 4 or pair.tensor.ndim != pair.target.ndim:
            return None
        theirs, ours = counts = pair.tensor.shape[1], pair.target.shape[1]
        names, others = pair.channel_names
        by_name = names != others and (len(names), len(others)) == counts and not set(names).isdisjoint(others)
        if counts != pair.image_channels or (theirs == ours and not by_name):
            return None
        if self.how == "repeat" and ours < theirs:
            raise ValueError(
                f"{pair.name} reads {theirs} channels in the file and {ours} here, which nothing can be repeated for: "
                "give InputChannels how: mean, or zero"
            )
        if by_name and theirs == ours == pair.tensor.shape[0]:
            raise ValueError(
                f"{pair.name} has as many outputs as the image has channels, so which kernels read these cannot be "
                f"told: let the data have them in the order of the weights, {', '.join(names)}"
            )
        kernel = _precise(pair.tensor)
        if by_name:
            value, words = kernel_by_name(kernel, names, others, self.how)
        else:
            value, words = kernel_for_channels(kernel, ours, self.how)
        return Taken(value, f"{theirs} -> {ours} input channels: {words}")


@dataclass(frozen=True)
class KernelSize(Adapter):
    """Take kernels of another size, in voxels.

    `centre`: the old kernel in the middle of zeros, which answers as before; of a larger one, its middle. `mean`: along
    each axis whose size changes, the mean everywhere, so that the sum, and with it the answer to a constant image, is
    that of the old one. `trilinear`: interpolated, times old voxels / new voxels, which keeps the sum of a constant
    kernel. `upkern`: interpolated with the values as they are, so that the sum grows with the voxels; a normalisation
    behind it takes that out again.

    Source: `upkern` as in Roy et al., "MedNeXt", 2023, https://arxiv.org/abs/2303.09975.

    Args:
        how: `centre`, `mean`, `trilinear` or `upkern`.
    """

    how: Literal["centre", "mean", "trilinear", "upkern"] = "trilinear"

    def take(self, pair: Pair) -> Taken | None:
        """Return a kernel in the network's size.

        Raises:
            ValueError: One size is even and the other odd, so that there is no centre.
        """
        if pair.tensor.ndim != 5 or pair.target.ndim != 5 or pair.tensor.shape[2:] == pair.target.shape[2:]:
            return None
        old, new = _sides(pair.tensor), _sides(pair.target)
        try:
            value, words = kernel_of_size(_precise(pair.tensor), new, self.how)
        except ValueError as error:
            raise ValueError(f"{pair.name}: {error}") from error
        return Taken(value, f"kernel {_by(old)} -> {_by(new)}: {words}")


def kernel_of_size(
    kernel: Kernel, size: Size, how: Literal["centre", "mean", "trilinear", "upkern"]
) -> tuple[Float[Tensor, "outputs inputs new_i new_j new_k"], str]:
    """Return a kernel in another size, and what was done in words; `KernelSize` has the rules.

    Raises:
        ValueError: A centre is asked for, and one size is even and the other odd.
    """
    old = _sides(kernel)
    if how == "centre":
        if any((new - each) % 2 for new, each in zip(size, old, strict=True)):
            raise ValueError(
                f"a kernel of {_by(old)} has no centre in one of {_by(size)}: give KernelSize how: trilinear"
            )
        borders = [(new - each) // 2 for new, each in zip(size, old, strict=True)]
        # `pad` wants the last axis first, and cuts where a border is negative.
        return F.pad(kernel, [border for each in reversed(borders) for border in (each, each)]), "its centre"
    if how == "mean":
        value = kernel
        for axis, (new, each) in enumerate(zip(size, old, strict=True), 2):
            if new != each:
                shape = [-1 if place != axis else new for place in range(kernel.ndim)]
                value = (value.sum(axis, keepdim=True) / new).expand(shape)
        return value, "the mean along each axis that changes, its sum kept"
    scale = prod(old) / prod(size) if how == "trilinear" else 1.0
    words = f"trilinear, times {scale:.3g}" if how == "trilinear" else "trilinear, values as they are (upkern)"
    if old == size:
        return kernel, words
    return F.interpolate(kernel, size=size, mode="trilinear", align_corners=False) * scale, words


@dataclass(frozen=True)
class PositionEmbeddings(Adapter):
    """Take position embeddings that were learned on another grid, interpolated to the network's.

    Tokens lie in rows, that of the class perhaps before them; they are taken as a cube unless the grids are given, and
    then up to four more may stand before them.
    Embeddings that lie on a grid themselves need none. Tables of relative positions (Swin) are interpolated likewise,
    and the indices into them stay the network's own; their grid has 2 x window - 1 places along each axis.

    Args:
        source_grid: Tokens along i, j, k in the file.
        grid: Tokens along i, j, k in the network.
        names: Regular expression of the names of such tensors, in small letters.
    """

    source_grid: tuple[int, int, int] | None = None
    grid: tuple[int, int, int] | None = None
    names: str = r"pos(ition)?_?emb|relative_position_bias_table"

    def take(self, pair: Pair) -> Taken | None:
        """Return the embeddings on the network's grid.

        Raises:
            ValueError: Their number is that of no cube, and no grid was given.
        """
        if pair.tensor.shape == pair.target.shape:
            return None
        if pair.name.endswith("relative_position_index"):
            return Taken(pair.target.detach().clone(), "as the network has it: it follows from its window")
        if not re.search(self.names, pair.name.lower()) or pair.tensor.ndim != pair.target.ndim:
            return None
        if pair.tensor.ndim == 5:
            return self._on_grid(pair)
        if pair.tensor.ndim not in (2, 3) or pair.tensor.shape[-1] != pair.target.shape[-1]:
            return None
        theirs, ours = (each.shape[-2] for each in (pair.tensor, pair.target))
        old, new = self._grid(theirs, self.source_grid, pair, "source_grid"), self._grid(ours, self.grid, pair, "grid")
        before, needed = theirs - prod(old), ours - prod(new)
        if before < needed:
            return None
        tokens = _precise(pair.tensor).reshape(theirs, -1)
        value = torch.cat([tokens[before - needed : before], moved_tokens(tokens[before:], old, new)])
        left = f"; {before - needed} tokens before them left out" if before > needed else ""
        return Taken(value.reshape(pair.target.shape), f"positions {_by(old)} -> {_by(new)}: trilinear{left}")

    def _on_grid(self, pair: Pair) -> Taken | None:
        old, new = _sides(pair.tensor), _sides(pair.target)
        if pair.tensor.shape[:2] != pair.target.shape[:2]:
            return None
        value = F.interpolate(_precise(pair.tensor), size=new, mode="trilinear", align_corners=False)
        return Taken(value, f"positions {_by(old)} -> {_by(new)}: trilinear")

    def _grid(self, tokens: int, given: Size | None, pair: Pair, key: str) -> Size:
        relative = "relative" in pair.name
        if given is not None and 0 <= tokens - prod(given) <= (0 if relative else MOST_TOKENS):
            return given
        for before in range(1 if relative else 2):
            side = round((tokens - before) ** (1 / 3))
            if side and side**3 == tokens - before and (given is None or relative):
                return side, side, side
        if relative:
            expected = "cube" if given is None else f"cube, nor {_by(given)}"
            raise ValueError(
                f"{pair.name} has {tokens} places, which are no {expected}: its window has to be a cube, or give "
                f"PositionEmbeddings {key}: [i, j, k], 2 x window - 1 along each axis"
            )
        expected = "cube, nor one more" if given is None else f"{_by(given)} with at most {MOST_TOKENS} more"
        raise ValueError(
            f"{pair.name} has {tokens} tokens, which are no {expected}: give PositionEmbeddings {key}: [i, j, k]"
        )


def moved_tokens(tokens: Float[Tensor, "tokens features"], old: Size, new: Size) -> Float[Tensor, "moved features"]:
    """Return features of a grid's places, interpolated to another grid over the same field.

    Args:
        tokens: The last axis of the grid runs fastest.
        old: Places along i, j, k.
        new: Places along i, j, k of the result.
    """
    if old == new:
        return tokens
    maps = tokens.T.reshape(1, -1, *old)
    return F.interpolate(maps, size=new, mode="trilinear", align_corners=False).reshape(tokens.shape[1], -1).T


@dataclass(frozen=True)
class NearestStage(Adapter):
    """Fill blocks that the file lacks, because the network is deeper, with the nearest numbered one of theirs.

    `encoder.stages.4` that the file lacks takes the whole of `encoder.stages.3`, or else of the next nearest whose
    tensors all fit, by other rules perhaps; of two as near, the lower. Where there is none it stays as initialised.
    Blocks that only the file has are left over.
    """

    def donors(self, targets: Collection[str], given: Collection[str], fits: Fits) -> dict[str, str]:
        """Return names below blocks that the file lacks, with those of the block that stands in for them."""
        known = {node for name in given for node in _nodes(name)}
        absent: dict[str, list[str]] = {}
        for name in targets:
            if name not in given and (node := next((each for each in _nodes(name) if each not in known), None)):
                absent.setdefault(node, []).append(name)
        found: dict[str, str] = {}
        for node, names in absent.items():
            for other in _siblings(node, known):
                pairs = {name: other + name[len(node) :] for name in names}
                if all(theirs in given and fits(name, theirs) for name, theirs in pairs.items()):
                    found |= pairs
                    break
        return found


def chosen_adapters(adapters: Sequence[Adapter] | None, allow: Collection[str]) -> tuple[Adapter, ...]:
    """Return the adapters of a recipe; where it allows other channels and says no more, one that repeats them."""
    given = tuple(adapters or ())
    repeats = "channels" in allow and not any("channels" in each.meets for each in given)
    return (*given, InputChannels()) if repeats else given


def met_by(adapters: Sequence[Adapter]) -> set[str]:
    """Return the keys of the contract in which data and weights may differ because of these adapters."""
    return {key for adapter in adapters for key in adapter.meets}


def adapted(adapters: Sequence[Adapter], pair: Pair) -> tuple[Tensor, list[str]]:
    """Return the tensor as all adapters in turn leave it, and what each did."""
    told = []
    for adapter in adapters:
        if taken := adapter.take(pair):
            pair = pair._replace(tensor=taken.value)
            told.append(taken.how)
    return pair.tensor, told


def donated(adapters: Sequence[Adapter], targets: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what the first adapter that knows a name takes in its place."""

    def fits(name: str, other: str) -> bool:
        value, _ = adapted(adapters, Pair(name, given[other], targets[name], None))
        return value.shape == targets[name].shape

    keys = targets.keys(), given.keys()
    return {name: other for adapter in reversed(adapters) for name, other in adapter.donors(*keys, fits).items()}


def _nodes(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _siblings(node: str, known: Collection[str]) -> list[str]:
    """Return the modules that differ from one in its last number alone, the nearest first."""
    own = NUMBERED.fullmatch(node)
    others = [(match, each) for each in known if (match := NUMBERED.fullmatch(each))]
    if own is None:
        return []
    near = [(abs(int(match[2]) - int(own[2])), int(match[2]), each) for match, each in others if match[1] == own[1]]
    return [each for *_, each in sorted(near)]


def _sides(tensor: Tensor) -> Size:
    return tensor.shape[2], tensor.shape[3], tensor.shape[4]


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
