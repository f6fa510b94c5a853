"""What a module and its data must agree on: the contract of the weights, met, adopted, or allowed to differ."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from lightning.pytorch import Trainer

from lightning_atlas.contract import PREPROCESSED, Contract, Difference, differences, in_words
from lightning_atlas.intake.weights import SourceWeights


@runtime_checkable
class Adopting(Protocol):
    """A data module that can prepare scans as weights expect them."""

    contract: Contract
    waits: bool
    """Nothing is prepared yet, since it is not known for which weights."""

    def adopt(self, weights: Contract) -> list[str]:
        """Prepare scans as weights expect them from now on, and return what that changes."""
        ...

    def adopt_later(self) -> None:
        """Wait for `adopt`."""
        ...

    def prepare_data(self) -> None:
        """Prepare scans."""
        ...

    def setup(self, stage: str | None = None) -> None:
        """Open prepared scans."""
        ...


def adopting(trainer: Trainer) -> Adopting:
    """Return the data module of a run, as one that adopts.

    Raises:
        ValueError: It cannot.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, Adopting):
        raise ValueError(
            f"contract: adopt needs a data module that can adopt, as ScanDataModule does; found {type(data).__name__}. "
            "Give it the weights' preprocessing itself, and say model.init_args.contract: match"
        )
    return cast(Adopting, data)


def stated_contract(source: SourceWeights, name: str) -> Contract:
    """Return what weights say that they expect.

    Raises:
        ValueError: They do not say.
    """
    if source.contract is None:
        raise ValueError(
            f"contract: adopt takes over what the weights expect of an image, and {name} does not say it: write what "
            "you know of it into data.init_args.preprocess, and say model.init_args.contract: match"
        )
    return source.contract


def not_stated(weights: Contract) -> list[str]:
    """Return a line on what cannot be adopted, because the weights do not state it; none where they state all."""
    silent = [key for key in ("orientation", "spacing_mm", "normalization") if getattr(weights, key) is None]
    where = "as the recipe has it; write what you know of it into data.init_args.preprocess"
    return [f"the weights do not state {', '.join(silent)}: {where}"] if silent else []


def adopt_kept(trainer: Trainer, data: Adopting, kept: Contract) -> list[str]:
    """Have the scans of a run prepared as its checkpoint expects them, and return what that changed."""
    waited = data.waits
    changed = data.adopt(kept)
    if waited or changed:
        if trainer.local_rank == 0:
            data.prepare_data()
        trainer.strategy.barrier("scans prepared as the checkpoint expects them")
        data.setup(None if trainer.state.fn is None else trainer.state.fn.value)
    return changed


def check_agreement(
    weights: Contract, data: Contract, allow: Sequence[str], name: str, adapted: Collection[str] = ()
) -> list[str]:
    """Return the differences that are allowed, in words.

    Args:
        weights: What the weights expect.
        data: What the data give.
        allow: Keys in which a difference is meant.
        name: Of the weights.
        adapted: Keys in which the weights are changed for the data.

    Raises:
        ValueError: Another key differs, or one of which no difference can be meant.
    """
    found = differences(weights, data)
    broken = [each for each in found if each.key not in adapted and (each.forbidden or each.key not in allow)]
    _refuse(broken, allow, f"the weights {name} expect")
    return [str(each) for each in found]


def check_prepared(kept: Contract, data: Contract, allow: Sequence[str]) -> None:
    """Refuse scans that are prepared in another way than those that a checkpoint was trained on.

    Raises:
        ValueError: The preprocessing differs in a key that is not allowed to, or the channels stand in another order.
    """
    if kept.channels != data.channels and sorted(kept.channels) == sorted(data.channels):
        raise ValueError(
            f"the checkpoint reads the channels {', '.join(kept.channels)}, and the data have them as "
            f"{', '.join(data.channels)}: give them in the order of the checkpoint"
        )
    found = [each for each in differences(kept, data) if each.key in PREPROCESSED]
    _refuse([each for each in found if each.forbidden or each.key not in allow], allow, "the checkpoint expects")


def _refuse(broken: Sequence[Difference], allow: Sequence[str], who: str) -> None:
    if not broken:
        return
    lines = [f"{who} {'; '.join(map(_compared, broken))}"]
    if never := [f"{each.key}, since {each.forbidden}" for each in broken if each.forbidden]:
        lines.append(f"never allowed to differ: {'; '.join(never)}")
    if any(each.key in PREPROCESSED for each in broken):
        lines.append(
            "take the preprocessing over: model.init_args.contract: adopt; or change data.init_args.preprocess"
        )
    for each in broken:
        if each.key == "channels":
            which = "other channels" if set(each.weights).isdisjoint(each.data) else "channels by their names"
            lines.append(f"take {which}: model.init_args.adapters: [{{class_path: InputChannels}}]")
    if keys := [each.key for each in broken if not each.forbidden]:
        lines.append(f"where a difference is meant: model.init_args.allow: [{', '.join([*allow, *keys])}]")
    raise ValueError("\n".join(lines))


def _compared(each: Difference) -> str:
    given = "not stated" if each.data is None else f"not {in_words(each.data)}"
    return f"{each.key} {in_words(each.weights)}, {given}"
