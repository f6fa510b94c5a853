"""LoRA: weights stand still, and a low-rank update of each moves."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_atlas.adaptation.base import Adaptation
from lightning_atlas.networks.base import Network, Stage, stage_modules, stage_parameters
from lightning_atlas.networks.low_rank import LAYERS, NAMES, LowRank, low_rank_updates


@dataclass(frozen=True)
class LoRA(Adaptation):
    """Hold the weights and learn a low-rank update of each, W + alpha / rank * B A; the head moves whole.

    B starts at 0, so training starts from the source weights exactly. Biases and normalisation stand still, running
    statistics included; stages that no checkpoint gave move whole. A checkpoint keeps the parts, with the alpha of its
    training. Read as weights, and in an export, it holds the sums, under the network's own names.

    Source: Hu et al. 2022, *LoRA: Low-Rank Adaptation of Large Language Models*; rank 8 and alpha 16 for all linear
    layers and 3D convolutions as in medlora-3d.
    Differs: the update is added to the weight and not to what the layer returns, so that it is the same for any stride,
    dilation, groups and padding. That costs the gradient of each whole weight for the moment in which it is computed.

    Args:
        rank: Of each update; at most the smaller side of the weight.
        alpha: The update is multiplied by alpha / rank.
        layers: Names of linear layers, Conv3d and ConvTranspose3d, or patterns such as `encoder.*`; by default all
            outside of the head.
    """

    rank: int = 8
    alpha: float = 16.0
    layers: list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the rank of LoRA is {self.rank}; it must be 1 or more")
        if not self.alpha > 0:
            raise ValueError(f"the alpha of LoRA is {self.alpha}; it must be above 0")
        if self.layers is not None and not self.layers:
            raise ValueError("the layers of LoRA are an empty list: name some, or leave it out for all")

    def build(self, network: Network, fresh: Collection[str]) -> None:
        """Give the chosen layers their update; fresh stages too, where it rests at 0, so that all verbs build alike.

        Raises:
            ValueError: The network has no such layer, or a pattern matches none.
        """
        low_rank_updates(self._chosen(network), self.rank, self.alpha / self.rank)

    def holds(self, network: Network, fresh: Collection[str]) -> set[str]:
        """Return all but the updates; in fresh stages, the updates."""
        held, every = set[str](), _updates(network)
        for stage in network.stages():
            names = set(stage_parameters(network, stage))
            updates = names & every
            held |= updates if _moves_whole(stage, fresh) else names - updates
        return held

    def set_modes(self, network: Network, fresh: Collection[str]) -> None:
        """Hold the running statistics of the stages whose weights stand still."""
        for stage in network.stages():
            if not _moves_whole(stage, fresh):
                for module in stage_modules(network, stage):
                    if getattr(module, "running_mean", None) is not None:
                        module.eval()

    def cautions(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[str]:
        """Say where there is nothing to adapt."""
        if all(_moves_whole(stage, fresh) for stage in stages):
            return ["LoRA adapts what weights gave, and they gave no stage but the head: everything moves whole"]
        return []

    def _chosen(self, network: Network) -> list[nn.Module]:
        body = {
            id(module)
            for stage in network.stages()
            if stage.part != "head"
            for module in stage_modules(network, stage)
            if isinstance(module, LAYERS) and not is_parametrized(module)
        }
        there = {name: module for name, module in network.named_modules() if id(module) in body}
        if not there:
            raise ValueError(
                f"LoRA has nothing to adapt in {type(network).__name__}: outside of its head there is no plain Linear, "
                "Conv3d or ConvTranspose3d; take LoRA out of model.init_args.adaptation"
            )
        patterns = ["*"] if self.layers is None else self.layers
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in there):
                near = get_close_matches(pattern, there, n=3, cutoff=0.0)
                raise ValueError(
                    f"LoRA: no layer outside of the head of {type(network).__name__} matches {pattern!r}; there are "
                    f"{len(there)}, such as {', '.join(near)}"
                )
        return [each for name, each in there.items() if any(fnmatchcase(name, one) for one in patterns)]


def source_name(name: str) -> str | None:
    """Return what weights from elsewhere call a parameter; `None` for a part of an update, which none of them has.

    Args:
        name: In a network whose layers may have low-rank updates.
    """
    found = NAMES.fullmatch(name)
    if found is None:
        return name
    return f"{found['layer']}weight" if found["part"] == "original" else None


def is_given(name: str, fresh_names: Collection[str]) -> bool:
    """Return whether source weights gave a parameter.

    Args:
        name: As for `source_name`.
        fresh_names: Of the parameters that they did not give, as before any update was made.
    """
    source = source_name(name)
    return source is not None and source not in fresh_names


def _moves_whole(stage: Stage, fresh: Collection[str]) -> bool:
    return stage.part == "head" or stage.name in fresh


def _updates(network: Network) -> set[str]:
    return {
        f"{name}.{own}"
        for name, module in network.named_modules()
        if isinstance(module, LowRank)
        for own, _ in module.named_parameters()
    }
