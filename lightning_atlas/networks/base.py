"""What every network tells of itself: its stages, from input to output."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from copy import deepcopy
from difflib import get_close_matches
from operator import attrgetter
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from lightning_atlas.types import Batch, Image

Part = Literal["encoder", "decoder", "head"]
Maps = Float[Tensor, "batch _features _i _j _k"]
"""Features on some grid."""
OutputLayer = nn.Conv3d | nn.ConvTranspose3d | nn.Linear


class Stage(NamedTuple):
    """A piece of a network that freezes, learns and is sharded as one.

    Args:
        name: As shown in reports.
        part: Which part of the network it belongs to.
        modules: Names of submodules of the network (as in `named_modules`), in forward order; a parameter or buffer
            that lies outside all of them can be named too.
    """

    name: str
    part: Part
    modules: tuple[str, ...]


class Network(nn.Module):
    """A network that can name its stages; its state dict has the keys of the published one."""

    size_multiple: int | tuple[int, int, int] = 1
    """Each side of an input patch must be a multiple of this: one number, or one for each of i, j, k."""
    size_offset: int = 0
    """Where it is not 0, the smallest side; larger ones are a multiple of `size_multiple` more."""
    context: int = 0
    """Voxels at each face of an image that the network sees and says nothing of: the logits lack them."""

    def stages(self) -> list[Stage]:
        """Return the stages in forward order; every parameter and buffer lies in exactly one."""
        raise NotImplementedError

    def conventions(self) -> dict[str, str]:
        """Return arguments, as YAML writes them, that weights depend on though no tensor's name or shape shows them."""
        return {}

    def output_axes(self) -> dict[str, int]:
        """Return the names of the tensors with an entry for each output, and the axis along which these lie.

        Raises:
            ValueError: The head has no layer of outputs.
        """
        layer = self.get_submodule(output_layer(self))
        assert isinstance(layer, OutputLayer)
        own = _output_axes(layer)
        axes = {id(each): own[name] for name, each in layer.named_parameters() if name in own}
        named = self.named_parameters(remove_duplicate=False)
        return {name: axes[id(each)] for name, each in named if id(each) in axes}

    def resize(self, outputs: int) -> None:
        """Give the head that many outputs, freshly initialised, unless it has them already.

        Raises:
            ValueError: The head has no layer of outputs, or one whose outputs cannot be told from its tensors.
        """
        resize_output(self, outputs)

    def check_size(self, image: Image) -> None:
        """Refuse an image that would not come back on its own grid.

        Raises:
            ValueError: A side is not a multiple of `size_multiple`.
        """
        sides, multiple, least = tuple(image.shape[2:]), self.size_multiple, self.size_offset
        multiples = (multiple,) * len(sides) if isinstance(multiple, int) else multiple
        fitting = tuple(
            least - min(0, least - side) // step * step for side, step in zip(sides, multiples, strict=True)
        )
        if sides != fitting:
            taken = f"{least} voxels, or {multiple} more, and so on" if least else f"multiples of {multiple}"
            raise ValueError(
                f"{type(self).__name__} takes images whose sides are {taken}, and got one of "
                f"{_voxels(sides)}; pad it, or set the size of the patches and of the window, to {_voxels(fitting)}"
            )


Coarse = Float[Tensor, "batch coarse_features coarse_i coarse_j coarse_k"]
"""What lies at the end of an encoder."""


class Encoding(Network):
    """A network whose encoder can be used without its decoder."""

    coarse_features: int
    """Channels at the end of the encoder."""
    skip_modules: tuple[str, ...] = ()
    """Modules of the encoder's stages that only the decoder reads."""

    def encoded(self, image: Image) -> Coarse:
        """Return what lies at the end of the encoder; the decoder is not run."""
        raise NotImplementedError


class Pyramid(Encoding):
    """An encoder whose features can be had on several grids."""

    level_features: tuple[int, ...]
    """Channels of each level, from the finest grid down."""

    def levels(self, image: Image) -> list[Maps]:
        """Return the features of each level, from the finest grid down."""
        raise NotImplementedError

    def reductions(self) -> list[tuple[int, int, int]]:
        """Return how many voxels of the image lie along i, j, k of one of each level."""
        raise NotImplementedError

    def encoded(self, image: Image) -> Coarse:
        """Return what lies at the end of the encoder."""
        return self.levels(image)[-1]


class Features(NamedTuple):
    """What a network computes before its head.

    Args:
        coarse: At the end of the encoder.
        fine: At the end of the decoder, on the grid of the image.
    """

    coarse: Coarse
    fine: Float[Tensor, "batch fine_features i j k"]


class Backbone(Encoding):
    """A network that also returns what its head reads, so that another head can take its place."""

    fine_features: int
    """Channels at the end of the decoder."""

    def features(self, image: Image) -> Features:
        """Return what lies at the ends of encoder and decoder."""
        raise NotImplementedError


def without_context(batch: Batch, context: int) -> Batch:
    """Return a batch whose label is on the grid of a network's logits.

    Args:
        batch: With a label on the grid of the image.
        context: Voxels at each face that the logits lack.
    """
    if not context:
        return batch
    inner = slice(context, -context)
    return {**batch, "label": batch["label"][:, inner, inner, inner]}


def stage_tensors(network: nn.Module, stage: Stage) -> dict[str, Tensor]:
    """Return the parameters and buffers of a stage by full name, as they are now (sharding replaces parameters).

    A tensor that has several names in the network goes by the first, as in `named_parameters`.

    Raises:
        ValueError: The stage names something that the network does not have.
    """
    members = {id(tensor) for name in stage.modules for tensor in _resolve(network, name)}
    return {name: tensor for name, tensor in _named_tensors(network).items() if id(tensor) in members}


def stage_parameters(network: nn.Module, stage: Stage) -> dict[str, nn.Parameter]:
    """Return the parameters of a stage by full name, in registration order."""
    tensors = stage_tensors(network, stage)
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}


def stage_modules(network: nn.Module, stage: Stage) -> list[nn.Module]:
    """Return the modules of a stage and all that these hold; a bare parameter or buffer is none."""
    members = (_find(network, name) for name in stage.modules)
    return [inner for member in members if isinstance(member, nn.Module) for inner in member.modules()]


def held_stages(network: Network, parts: Collection[Part] = ("encoder",)) -> list[Stage]:
    """Return the stages of a network as those of another that holds it as `backbone`.

    Args:
        network: That is held.
        parts: Which of its stages are returned.
    """
    stages = [stage for stage in network.stages() if stage.part in parts]
    return [Stage(name, part, tuple(f"backbone.{each}" for each in modules)) for name, part, modules in stages]


def check_stages(network: Network) -> None:
    """Check that every parameter and buffer lies in exactly one stage.

    Raises:
        ValueError: A tensor lies in no stage or in several, or two stages have the same name.
    """
    stages, tensors = network.stages(), _named_tensors(network)
    owners = defaultdict(list)
    for stage in stages:
        for name in stage_tensors(network, stage):
            owners[name].append(stage.name)
    names = [stage.name for stage in stages]
    faults = {
        "in no stage": [name for name in tensors if name not in owners],
        "in several stages": [f"{name} ({', '.join(found)})" for name, found in owners.items() if len(found) > 1],
        "names of several stages": sorted({name for name in names if names.count(name) > 1}),
    }
    if told := [f"{fault}: {_some(found)}" for fault, found in faults.items() if found]:
        raise ValueError(
            f"the stages of {type(network).__name__} do not hold each parameter and buffer once; {'; '.join(told)}; "
            f"name each module once, in encoder, decoder or head"
        )


def output_layer(network: Network) -> str:
    """Return the name of the last convolution or linear layer of the head.

    Raises:
        ValueError: The head has neither.
    """
    head = [name for stage in network.stages() if stage.part == "head" for name in stage.modules]
    for name in reversed(head):
        found = _find(network, name)
        inner = found.named_modules(prefix=name) if isinstance(found, nn.Module) else []
        if layers := [full for full, module in inner if isinstance(module, OutputLayer)]:
            return layers[-1]
    raise ValueError(
        f"the head of {type(network).__name__} ({', '.join(head) or 'no module'}) holds no Conv3d, ConvTranspose3d or "
        f"Linear that could be given the number of outputs; name the module that holds the last one in `head`"
    )


def resize_output(network: Network, outputs: int, layer: str | None = None) -> None:
    """Replace the output layer by a freshly initialised one of its kind, unless it has that many outputs already.

    Args:
        network: Changed in place.
        outputs: How many the layer shall have.
        layer: Its name; `None` for the last of the head.

    Raises:
        ValueError: The head has no layer that could be replaced, or that many outputs do not fit it.
    """
    old = network.get_submodule(layer or output_layer(network))
    assert isinstance(old, OutputLayer)
    if (old.out_features if isinstance(old, nn.Linear) else old.out_channels) == outputs:
        return
    new = _fresh(old, outputs)
    for name in [name for name, module in network.named_modules(remove_duplicate=False) if module is old]:
        network.set_submodule(name, new)


def _fresh(layer: OutputLayer, outputs: int) -> OutputLayer:
    """Return a layer that differs in its number of outputs alone, its tensors drawn anew by `reset_parameters`."""
    name, axes = type(layer).__name__, _output_axes(layer)
    if unknown := [each for each, _ in layer.named_parameters() if each not in axes]:
        raise ValueError(
            f"the last layer of the head, {name}, has tensors whose outputs are not known ({_some(unknown)}): "
            "build the network with the outputs of the run, or override `resize`"
        )
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    if outputs % groups:
        raise ValueError(
            f"the last layer of the head, {name}, has {groups} groups, which do not divide {outputs} outputs: build it "
            "with one group"
        )
    new = deepcopy(layer)
    if isinstance(new, nn.Linear):
        new.out_features = outputs
    else:
        new.out_channels = outputs
    for each, old in layer.named_parameters():
        sides, of_one_group = list(old.shape), each == "weight" and isinstance(layer, nn.ConvTranspose3d)
        sides[axes[each]] = outputs // groups if of_one_group else outputs
        setattr(new, each, nn.Parameter(old.new_empty(sides)))
    new.reset_parameters()
    return new


def _output_axes(layer: OutputLayer) -> dict[str, int]:
    """Return, for each tensor of a layer with an entry for each output, the axis along which these lie."""
    return {"weight": int(isinstance(layer, nn.ConvTranspose3d)), "bias": 0} | getattr(layer, "further_axes", {})


def _named_tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _find(network: nn.Module, name: str) -> object:
    try:
        return attrgetter(name)(network)
    except AttributeError:
        return None


def _resolve(network: nn.Module, name: str) -> Iterable[Tensor]:
    found = _find(network, name)
    if isinstance(found, nn.Module):
        return _named_tensors(found).values()
    if isinstance(found, Tensor):
        return [found]
    known = [*dict(network.named_modules()), *_named_tensors(network)]
    near = get_close_matches(name, filter(None, known), n=3) or list(dict(network.named_children()))
    raise ValueError(f"{type(network).__name__} has no module or parameter {name!r}; nearest: {_some(near)}")


def _some(names: Sequence[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _voxels(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides)) + " voxels"
