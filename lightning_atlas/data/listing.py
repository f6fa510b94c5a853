"""The cases of a recipe: listed, divided, and alike in what they must be alike in."""

from collections.abc import Mapping, Sequence
from functools import partial

from lightning_atlas.data.cases import Case, Source, Split
from lightning_atlas.data.holding import held_classes
from lightning_atlas.data.labels.classes import Classes
from lightning_atlas.data.sources.splits import PlaneSplit, Splits, check_leaks

Wanted = Classes | Mapping[str, Sequence[str]] | None


def list_cases(
    source: Source, splits: Splits | PlaneSplit | None, fold: int | None, classes: Wanted = None
) -> list[Case]:
    """Return all cases of a source, divided; no voxel is read, but for the labels that `Splits.shots` chooses by.

    Args:
        source: Lists them.
        splits: Divides them; `None` leaves them as the source has them, unless there is a fold.
        fold: Which one validates.
        classes: What the recipe says of its classes.

    Raises:
        ValueError: There is none, or a subject stands in two places, or a patient or an image in two splits.
    """
    cases = source.cases()
    if not cases:
        raise ValueError(f"{source.description}: there are no scans")
    if isinstance(splits, PlaneSplit):
        cases = splits.assign(cases, fold)
    elif splits is not None or fold is not None:
        drawn = any(case.names for case in cases)
        cases = (splits or Splits()).assign(cases, fold, partial(held_classes, wanted=classes) if drawn else None)
    seen: dict[str, Split] = {}
    for case in cases:
        name = case.subject.casefold()
        if name in seen:
            raise ValueError(f"subject {case.subject} stands in {seen[name]} and again in {case.split}; take one out")
        seen[name] = case.split
    if splits is None and fold is None:
        check_leaks(cases)  # as the divided ones were
    return cases


def shared_channels(cases: Sequence[Case]) -> tuple[str, ...]:
    """Return the channels, which all scans have; a single one is `image`, whatever a dataset calls it.

    Raises:
        ValueError: Some scans have others.
    """
    first = cases[0]
    for case in cases:
        if case.channels.keys() != first.channels.keys():
            raise ValueError(
                f"{case.subject} has the channels {', '.join(case.channels)}, but {first.subject} has "
                f"{', '.join(first.channels)}; take out those that some lack"
            )
    return tuple(first.channels) if len(first.channels) > 1 else ("image",)
