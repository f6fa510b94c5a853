"""A list of adaptations on a network: the one place that says what moves when, before a fit and during it."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from lightning_atlas.adaptation.base import Adaptation, combined
from lightning_atlas.adaptation.catalogue import LOWEST
from lightning_atlas.adaptation.following import FollowingRates, StandIn
from lightning_atlas.adaptation.groups import freeze, parameter_groups, parameters_of, rest, stage_table
from lightning_atlas.adaptation.schedules import ConstantSchedule, Schedule
from lightning_atlas.networks.base import Network

Optimizing = Callable[..., Optimizer]
Scheduling = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
TRACED = 200
"""Steps at which a course of rates is told, besides its peaks."""
LOOKED = 20_000
"""Steps at which a peak is looked for; in runs of up to twice as many these are all."""


class AdaptationPlan:
    """What moves, when and how fast, in a run of some length.

    Args:
        adaptations: That act together.
        network: After `build`.
        fresh: Names of the stages that hold parameters which no checkpoint gave.
        total_steps: Optimizer steps of the whole run.
    """

    def __init__(
        self, adaptations: Sequence[Adaptation], network: Network, fresh: Collection[str], total_steps: int
    ) -> None:
        self.adaptations = adaptations
        self.network = network
        self.fresh = set(fresh)
        self.total_steps = total_steps
        self.stages = network.stages()
        self.held: set[str] = set()
        """Parameters that stand still in the whole run."""
        self.frozen: set[str] = set()
        """Stages of which nothing moves in the whole run."""
        self._told: tuple[int, dict[str, float]] | None = None
        self._course: tuple[object, tuple[list[int], dict[str, list[float]]]] | None = None

    def freeze(self) -> None:
        """Let what stands still in the whole run take no gradient.

        Raises:
            ValueError: Nothing would be left to train.
        """
        of_run = (each.always_zero(self.stages, self.fresh, self.total_steps) for each in self.adaptations)
        held = {name for each in self.adaptations for name in each.holds(self.network, self.fresh)}
        self.held = held | parameters_of(self.network, set().union(*of_run))
        self.frozen, self._told, self._course = freeze(self.network, self.held), None, None

    def thaw(self) -> None:
        """Undo `freeze`."""
        for name, parameter in self.network.named_parameters():
            if name in self.held:
                parameter.requires_grad_(True)

    def multipliers(self, step: int) -> dict[str, float]:
        """Return each stage's share of the scheduled rate at a step."""
        if self._told is None or self._told[0] != step:
            found = combined(self.adaptations, self.stages, self.fresh, step, self.total_steps)
            self._told = step, {name: 0.0 if name in self.frozen else each for name, each in found.items()}
        return self._told[1]

    def resting(self, step: int) -> set[str]:
        """Return the stages that do not move at a step."""
        return {name for name, each in self.multipliers(step).items() if each == 0}

    def set_modes(self, step: int) -> None:
        """Put what rests at a step in evaluation mode, in a network that is in training mode."""
        rest(self.network, self.resting(step))
        for each in self.adaptations:
            each.set_modes(self.network, self.fresh)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups, from the parameters as they are now."""
        options = {"weight_decay": 0.0} if any(each.replaces_weight_decay for each in self.adaptations) else {}
        return parameter_groups(self.network, any(each.per_tensor for each in self.adaptations), **options)

    def follow(self, optimizer: Optimizer, optimizing: Optimizing, schedule: Schedule | Scheduling) -> FollowingRates:
        """Return what gives each of these groups its rate at every step."""
        return FollowingRates(optimizer, optimizing, self._scheduling(schedule), self.multiplier)

    def multiplier(self, group: dict[str, Any], step: int) -> float:
        """Return the share of the scheduled rate that a group has."""
        share = self.multipliers(step)[group["stage"]]
        for each in self.adaptations:
            share *= each.factor(group["name"])
        return share

    def course(
        self, optimizing: Optimizing, schedule: Schedule | Scheduling
    ) -> tuple[list[int], dict[str, list[float]]]:
        """Return steps, among them the first, the last and each stage's peak, and the rate of each stage at these.

        A schedule that waits for a metric is shown as if it never acted.
        """
        # A table and a picture ask one after the other, and each time it goes through the whole run.
        if self._course is None or self._course[0] != (optimizing, schedule):
            self._course = (optimizing, schedule), self._trace(optimizing, schedule)
        return self._course[1]

    def _trace(
        self, optimizing: Optimizing, schedule: Schedule | Scheduling
    ) -> tuple[list[int], dict[str, list[float]]]:
        stand_in = StandIn(optimizing, self._scheduling(schedule))
        last, names = max(0, self.total_steps - 1), [stage.name for stage in self.stages]
        told, looked = ({*range(0, last, max(1, last // count)), last} for count in (TRACED, LOOKED))
        if isinstance(schedule, Schedule):  # closed form: no need to go through every step
            scheduled = {
                step: stand_in.group["initial_lr"] * schedule(step, self.total_steps) for step in told | looked
            }
        else:
            scheduled = {step: stand_in.advance() if step else stand_in.rate for step in range(last + 1)}
        rates = {
            step: {name: scheduled[step] * share for name, share in self.multipliers(step).items()}
            for step in sorted(told | looked)
        }
        peaks = {max(rates, key=lambda step: rates[step][name]) for name in names}
        steps = sorted(told | peaks)
        return steps, {name: [rates[step][name] for step in steps] for name in names}

    def table(self, optimizing: Optimizing, schedule: Schedule | Scheduling) -> str:
        """Return a line for each stage, and what a person should know before the first step."""
        steps, course = self.course(optimizing, schedule)
        spans = {name: (rates[0], max(rates), rates[-1]) for name, rates in course.items()}
        replaced = any(each.replaces_weight_decay for each in self.adaptations)
        group = StandIn(optimizing, self._scheduling(schedule)).group
        decay = 0.0 if replaced else float(group.get("weight_decay", 0.0))
        cautions = [line for each in self.adaptations for line in each.cautions(self.stages, self.fresh)]
        cautions += [*self._slowed(steps), *self._multiplied(schedule)]
        lines = [stage_table(self.network, spans, self.fresh, decay), *(f"caution: {line}" for line in cautions)]
        return "\n".join(lines)

    def _slowed(self, steps: Sequence[int]) -> list[str]:
        """Warn of the stage that moves least, where it is only together that adaptations leave it hardly any rate."""

        def highest(adaptations: Sequence[Adaptation]) -> dict[str, float]:
            at = [combined(adaptations, self.stages, self.fresh, step, self.total_steps) for step in steps]
            return {stage.name: max(each[stage.name] for each in at) for stage in self.stages}

        moving = {name: share for name, share in highest(self.adaptations).items() if name not in self.frozen}
        name, share = min(moving.items(), key=lambda each: each[1])
        if share >= LOWEST or any(highest([each])[name] < LOWEST for each in self.adaptations):
            return []
        return [f"the adaptations together leave {name} {share:.1e} of the rate at most: it hardly moves"]

    def _multiplied(self, schedule: Schedule | Scheduling) -> list[str]:
        """Warn of a schedule beside what is the whole course of the rate."""
        whole = [type(each).__name__ for each in self.adaptations if each.whole_course]
        if not whole or schedule == ConstantSchedule():
            return []
        told = f"{' and '.join(whole)} is the whole course of the rate, and a schedule multiplies it"
        return [f"{told}: set model.init_args.schedule: null"]

    def _scheduling(self, schedule: Schedule | Scheduling) -> Scheduling:
        if not isinstance(schedule, Schedule):
            return schedule
        return partial(LambdaLR, lr_lambda=partial(_share, schedule, self.total_steps))


def _share(schedule: Schedule, total_steps: int, step: int) -> float:
    return schedule(step, total_steps)
