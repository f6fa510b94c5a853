"""DELTA: features stay near those of the source network, those that matter for the task above all."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, distributed, nn

from lightning_atlas.adaptation.base import Adaptation
from lightning_atlas.adaptation.lora import source_name
from lightning_atlas.adaptation.phases import resting_steps
from lightning_atlas.adaptation.shards import whole
from lightning_atlas.networks.base import Encoding, Network, Stage, stage_tensors, without_context
from lightning_atlas.types import Image

Features = Float[Tensor, "batch features ..."]
Attention = Float[Tensor, " features"]
TEMPERATURE = 5.0
"""Of the softmax over a stage's standardised increases of the loss. Source: the authors' code, as kept in tllib."""


class DELTA(Adaptation):
    """Add to the loss how far each stage's features are from those of the frozen source network.

    The penalty of a stage that weights gave, the head apart, is C / 2 * sum over its C channels of attention * mean
    over cases and voxels of the squared difference. The attention of a stage sums to 1: it is a softmax of how much the
    loss grows when a channel is set to 0 in the source network, under the head as trained so far, over some training
    batches. That costs, once, a pass through the network for each channel and batch; until it is done, and without it,
    all channels count alike. The source network lies in the memory of every process, in whole.

    Source: Li et al. 2019, *DELTA: Deep Learning Transfer using Feature Map with Attention for Convolutional Networks*;
    weight and batches as in tllib.
    Differs: means in place of sums over cases and voxels, so that the weight does not depend on the size of the patch;
    the optimizer's weight decay stands for the penalty on the head. The paper trains a head first: let `HeadsFirst`
    do so, with its share as `attention_after`.

    Args:
        weight: Of the penalty in the loss.
        attention_batches: Training batches over which the attention is measured; 0 lets all channels count alike.
        attention_after: Share of the run after which it is measured.
    """

    needs_anchor: ClassVar[bool] = True

    def __init__(self, weight: float = 0.01, attention_batches: int = 10, attention_after: float = 0.0) -> None:
        if not weight > 0:
            raise ValueError(f"the weight of DELTA is {weight}; it must be above 0")
        if attention_batches < 0:
            raise ValueError(f"attention_batches of DELTA is {attention_batches}; it must be 0 or more")
        if not 0.0 <= attention_after < 1.0:
            raise ValueError(f"attention_after of DELTA is {attention_after}; it is a share of the run, below 1")
        self.weight = weight
        self.attention_batches = attention_batches
        self.attention_after = attention_after
        self.source: Network | None = None
        self.seen: dict[str, Features] = {}
        """Features of the network as it trains, from its last forward pass, by stage."""
        self.attention: dict[str, Attention] = {}
        self._fits = False

    def callbacks(self) -> list[Callback]:
        """Return what watches the features and measures the attention."""
        self._fits = True
        return [Watching(self)]

    def build(self, network: Network, fresh: Collection[str]) -> None:
        """Copy the network as the source weights left it, where a fit begins."""
        if self._fits:
            self.source = copy.deepcopy(network).eval().requires_grad_(False)

    def penalty(self, network: Network, image: Image) -> dict[str, Tensor]:
        """Return the weighted distance as `delta`; of stages at rest there is none."""
        seen, self.seen = self.seen, {}
        if self.source is None or not seen:
            return {}
        source: dict[str, Features] = {}
        with torch.no_grad(), watched(self.source, seen, partial(_keep, source)):
            self.source(image)
        distances = [feature_distance(each, source[name], self.attention.get(name)) for name, each in seen.items()]
        return {"delta": self.weight * torch.stack(distances).sum()}

    def cautions(self, stages: Sequence[Stage], fresh: Collection[str]) -> list[str]:
        """Say where there is nothing to stay near to."""
        if not _compared(stages, fresh):
            return ["DELTA has no source weights whose features it could hold on to: it adds nothing"]
        return []


def feature_distance(features: Features, source: Features, attention: Attention | None = None) -> Float[Tensor, ""]:
    """Return C / 2 * sum over channels of attention * mean over cases and voxels of the squared difference.

    Args:
        features: Of the network that trains.
        source: Of the source network.
        attention: Of each channel, with sum 1; by default the same for all.
    """
    per_channel = (features - source).float().square().transpose(0, 1).flatten(1).mean(1)
    if attention is None:
        return per_channel.sum() / 2
    return len(attention) * (attention * per_channel).sum() / 2


def channel_attention(increases: Float[Tensor, " features"]) -> Attention:
    """Return the softmax of the standardised increases of the loss when a channel is removed."""
    spread = increases.std(correction=0)
    if not spread > 0:
        return torch.full_like(increases, 1 / len(increases))
    return torch.softmax((increases - increases.mean()) / spread / TEMPERATURE, 0)


class Watching(Callback):
    """Keeps the features that the network makes in training, and measures the attention.

    Args:
        adaptation: Whose penalty it is.
    """

    def __init__(self, adaptation: DELTA) -> None:
        self.adaptation = adaptation
        self.increases: dict[str, Float[Tensor, " features"]] = {}
        """Sums over the batches measured so far."""
        self.measured = 0
        self._handles: list[Any] = []
        self._unseen: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the stages that weights gave, the head apart."""
        module, adaptation = _module(pl_module), self.adaptation
        if adaptation.source is not None:
            adaptation.source.to(module.device, module.dtype)
        adaptation.attention = {name: each.to(module.device) for name, each in adaptation.attention.items()}
        names = _compared(module.network.stages(), module.fresh)
        self._handles, self._unseen = watch(module.network, names, self._see), set(names)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure on this batch, if it is the turn of one."""
        module, adaptation = _module(pl_module), self.adaptation
        first = resting_steps(adaptation.attention_after, module.total_steps)
        if self.measured >= adaptation.attention_batches or trainer.global_step < first or adaptation.source is None:
            return
        self._give_fresh_stages(module, adaptation.source)
        names = _compared(module.network.stages(), module.fresh)
        seen = without_context(batch, module.network.context)
        with trainer.precision_plugin.forward_context():
            found = loss_increases(adaptation.source, names, batch["image"], lambda out: module.task.loss(out, seen))
        for name, each in found.items():
            self.increases[name] = self.increases[name].to(each.device) + each if name in self.increases else each
        self.measured += 1
        if self.measured == adaptation.attention_batches:
            for name, each in self.increases.items():
                if distributed.is_available() and distributed.is_initialized():
                    distributed.all_reduce(each)
                adaptation.attention[name] = channel_attention(each)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let go of what a recomputation in the backward pass has left; name stages that have shown nothing."""
        self.adaptation.seen = {}
        if self._unseen:
            rank_zero_warn(f"DELTA leaves out {', '.join(sorted(self._unseen))}: what they return is no tensor")
            self._unseen = set()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Watch no longer."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the attention, and what is measured so far."""
        kept = ("increases", self.increases), ("attention", self.adaptation.attention)
        return {"measured": self.measured, **{key: {name: each.cpu() for name, each in by.items()} for key, by in kept}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.measured, self.increases = state_dict["measured"], dict(state_dict["increases"])
        self.adaptation.attention = dict(state_dict["attention"])

    def _see(self, stage: str, features: Features) -> None:
        self._unseen.discard(stage)
        if torch.is_grad_enabled() and features.requires_grad:
            self.adaptation.seen[stage] = features

    def _give_fresh_stages(self, module: Any, source: Network) -> None:
        """Let the source network judge its features by the head and the other fresh stages as they are now."""
        kept = set(_compared(module.network.stages(), module.fresh))
        for stage, copied in zip(module.network.stages(), source.stages(), strict=True):
            if stage.name not in kept:
                theirs = stage_tensors(source, copied)
                for name, tensor in stage_tensors(module.network, stage).items():
                    # A later LoRA has given weights another name, and updates that rest at 0 in these stages.
                    if (known := name if name in theirs else source_name(name)) in theirs:
                        theirs[known].copy_(whole(tensor))


def loss_increases(
    network: Network, stages: Collection[str], image: Image, loss: Callable[[Any], dict[str, Tensor]]
) -> dict[str, Float[Tensor, " features"]]:
    """Return by how much the loss grows when a channel of a stage's features is set to 0, by stage.

    Args:
        network: In evaluation mode.
        stages: Names of the stages.
        image: What it sees.
        loss: Of what it returns, as `loss`.
    """
    sizes: dict[str, Features] = {}
    with torch.no_grad():
        with watched(network, stages, partial(_keep, sizes)):
            whole_loss = loss(network(image))["loss"]
        increases = {}
        for name, features in sizes.items():
            losses = []
            for channel in range(features.shape[1]):
                with watched(network, [name], partial(_without, channel)):
                    losses.append(loss(network(image))["loss"])
            increases[name] = torch.stack(losses).float() - whole_loss.float()
    return increases


def watch(network: Network, stages: Collection[str], act: Callable[[str, Features], Tensor | None]) -> list[Any]:
    """Hand each of these stages' features, as soon as they are made, to `act`; return the handles of the hooks.

    The features of a stage are the tensor that its last module returns, those on a skip apart. What `act` returns takes
    their place, unless it is `None`.
    """
    handles = []
    skips = network.skip_modules if isinstance(network, Encoding) else ()
    for stage in network.stages():
        if stage.name in stages:
            called = [each for name in stage.modules if name not in skips for each in _called(network, name)]
            hook = partial(_hook, act, stage.name)
            handles += [module.register_forward_hook(hook) for module in called[-1:]]
    return handles


@contextmanager
def watched(network: Network, stages: Collection[str], act: Callable[[str, Features], Tensor | None]) -> Iterator[None]:
    """Watch for a while."""
    handles = watch(network, stages, act)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _called(network: nn.Module, name: str) -> list[nn.Module]:
    """Return a module, or of a mere container what it holds; of a bare parameter none."""
    found: Any = network
    for part in name.split("."):
        found = getattr(found, part)
    if isinstance(found, nn.ModuleList | nn.ModuleDict):
        return [inner for own, _ in found.named_children() for inner in _called(found, own)]
    return [found] if isinstance(found, nn.Module) else []


def _hook(act: Callable[[str, Features], Tensor | None], stage: str, _: nn.Module, __: Any, output: Any) -> Any:
    if not isinstance(output, Tensor):
        return None
    tokens = output.dim() == 3  # batch tokens features
    instead = act(stage, output.transpose(1, 2) if tokens else output)
    return instead.transpose(1, 2) if tokens and instead is not None else instead


def _keep(into: dict[str, Features], stage: str, features: Shaped[Tensor, "..."]) -> None:
    into[stage] = features


def _without(channel: int, stage: str, features: Features) -> Features:
    return features.index_fill(1, torch.tensor([channel], device=features.device), 0.0)


def _compared(stages: Sequence[Stage], fresh: Collection[str]) -> list[str]:
    return [stage.name for stage in stages if stage.name not in fresh and stage.part != "head"]


def _module(pl_module: LightningModule) -> Any:
    return pl_module
