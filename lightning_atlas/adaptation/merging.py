"""Weights between weights: towards those that a run started from, and means of several runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lightning_atlas.adaptation.groups import fresh_stages
from lightning_atlas.intake.adapters import Adapter
from lightning_atlas.intake.inflation import HeadRule
from lightning_atlas.intake.loading import load_weights
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.networks.base import Network, stage_tensors

State = Mapping[str, Tensor]
Score = Callable[[State, bool], float]
"""Of weights, and whether they are merged, as those of a training are not; higher is better."""
SHARES = tuple(step / 10 for step in range(11))
"""Shares of the fine-tuned weights, as published."""


class Tried(NamedTuple):
    """One thing that was scored.

    Args:
        name: What it is.
        score: On validation cases.
        taken: It is the result, or a part of it.
    """

    name: str
    score: float
    taken: bool


def interpolated(source: State, tuned: State, share: float) -> dict[str, Tensor]:
    """Return (1 - share) * source + share * tuned; counters as in `tuned`.

    Args:
        source: Has every name of `tuned`.
        tuned: Fine-tuned weights.
        share: From 0, which is the source, to 1.
    """
    return {name: _between(source[name], each, share) for name, each in tuned.items()}


def _between(source: Tensor, tuned: Tensor, share: float) -> Tensor:
    if not tuned.is_floating_point():
        return tuned.clone()
    return ((1 - share) * source.double() + share * tuned.double()).to(tuned.dtype)


@dataclass(frozen=True)
class Soup:
    """A mean of weights, to which more can be added; made by `Soup.of`.

    Args:
        first: Whose counters and precision the mean has.
        sums: Of all numbers, in double precision.
        count: How many were added.
    """

    first: State
    sums: State
    count: int = 1

    @classmethod
    def of(cls, state: State) -> "Soup":
        """Return a soup of one."""
        return cls(state, {name: each.double() for name, each in state.items() if each.is_floating_point()})

    def add(self, state: State) -> "Soup":
        """Return a soup of one more; this one stays as it is."""
        return Soup(self.first, {name: each + state[name] for name, each in self.sums.items()}, self.count + 1)

    def mean(self) -> dict[str, Tensor]:
        """Return the mean."""
        return {
            name: (self.sums[name] / self.count).to(each.dtype) if name in self.sums else each.clone()
            for name, each in self.first.items()
        }


def choose_share(source: State, tuned: State, score: Score) -> tuple[float, list[Tried]]:
    """Return the share of the fine-tuned weights that scores best; of equal ones the largest.

    Source: Wortsman et al. 2022, *Robust Fine-Tuning of Zero-Shot Models* (WiSE-FT).
    Differs: there the share is chosen on other data than those that are improved by it, or is 0.5.
    """
    scores = {share: score(interpolated(source, tuned, share), share < 1) for share in SHARES}
    best = max(SHARES, key=lambda share: (scores[share], share))
    return best, [Tried(f"{share:.1f}", each, share == best) for share, each in scores.items()]


def greedy_soup(names: Sequence[str], load: Callable[[str], State], score: Score) -> tuple[Soup, list[Tried]]:
    """Return the mean of those runs that do not let it score lower, tried from the best on.

    Source: Wortsman et al. 2022, *Model Soups: Averaging Weights of Multiple Fine-Tuned Models*.

    Args:
        names: Of the runs; of equally good ones the first goes first.
        load: Returns a run's weights.
        score: On cases that no run was trained on.

    Returns:
        The soup; then each run alone, from the best on, and the soup after each attempt.
    """
    alone = {name: score(load(name), False) for name in names}
    first, *others = sorted(names, key=lambda name: -alone[name])
    soup, reached, members, tried = Soup.of(load(first)), alone[first], {first}, list[Tried]()
    for name in others:
        larger = soup.add(load(name))
        found = score(larger.mean(), True)
        taken = found >= reached
        tried.append(Tried(f"with {name}", found, taken))
        if taken:
            soup, reached = larger, found
            members.add(name)
    return soup, [*(Tried(name, alone[name], name in members) for name in (first, *others)), *tried]


def check_alike(states: Mapping[str, State]) -> None:
    """Refuse weights of different networks.

    Args:
        states: By the name of the run.

    Raises:
        ValueError: Names the tensor that differs.
    """
    (first, ours), *others = [
        (name, {key: tuple(each.shape) for key, each in state.items()}) for name, state in states.items()
    ]
    for name, theirs in others:
        odd = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if odd:
            raise ValueError(
                f"{name} has another network than {first}: {odd[0]} is {theirs.get(odd[0], 'missing')} there and "
                f"{ours.get(odd[0], 'missing')} here; only weights of one network have a mean"
            )


def source_state(
    network: Network,
    source: SourceWeights,
    classes: Sequence[str] = (),
    adapters: Sequence[Adapter] = (),
    head: HeadRule = "by_name",
    channels: Sequence[str] = (),
) -> tuple[dict[str, Tensor], list[str]]:
    """Return what the source weights make of a network; what they do not give, it keeps.

    A head is kept whole if any of its outputs is one that the source does not know.

    Args:
        network: With its fine-tuned weights; it gets those of the source.
        source: As read.
        classes: Of the network's outputs.
        adapters: As in `load_weights`.
        channels: Likewise.
        head: As in `load_weights`.

    Returns:
        The whole state, and the names of the tensors that the source did not give, or not whole.
    """
    tuned = {name: each.clone() for name, each in network.state_dict().items()}
    fresh = load_weights(
        network, source, classes, required_share=0.0, adapters=adapters, head=head, channels=channels
    ).fresh_names
    new = fresh_stages(network, fresh)
    heads = [stage for stage in network.stages() if stage.part == "head" and stage.name in new]
    kept = fresh.union(*(stage_tensors(network, stage) for stage in heads))
    for name, tensor in network.state_dict().items():
        if name in kept:
            tensor.copy_(tuned[name])
    state = {name: each.clone() for name, each in network.state_dict().items()}
    return state, [name for name in state if name in kept]
