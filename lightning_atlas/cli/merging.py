"""The verb `merge`: from finished runs to weights between or in the middle of theirs, as a folder like a run's."""

import argparse
import csv
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_atlas.adaptation.merging import Soup, Tried, choose_share, greedy_soup, interpolated, source_state
from lightning_atlas.cli.finished import (
    OWN,
    Finished,
    check_together,
    read_run,
    source_of,
    write_checkpoint,
    write_facts,
)
from lightning_atlas.cli.judging import Judge
from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.cli.request import read_request
from lightning_atlas.cli.run_folder import is_run
from lightning_atlas.cli.runner import import_parts, run
from lightning_atlas.cli.words import Words
from lightning_atlas.intake import SourceWeights
from lightning_atlas.intake.exported import written_aside

FORM = "merge RUN [RUN ...] --method wise|greedy|uniform --output FOLDER"


@dataclass
class Merged:
    """What a method made.

    Args:
        state: Of the network, whole.
        merged: It is of no training.
        tried: What was scored.
        facts: For the checkpoint.
        notes: What a person should know.
    """

    state: Mapping[str, Tensor]
    merged: bool
    tried: list[Tried]
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def run_merge(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After it.

    Raises:
        CommandError: The runs cannot be merged, or the output is there already.
    """
    options = merge_parser().parse_args(list(words))
    _check(options)
    import_parts()
    try:
        runs = [read_run(path) for path in options.runs]
        judged = merge_runs(runs, options.method, options.output, shlex.join(["lightning-atlas", "merge", *words]))
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    if judged:
        run(read_request("validate", [str(options.output)]))


def merge_parser() -> argparse.ArgumentParser:
    """Return what reads the words after the verb."""
    parser = Words("merge", FORM, description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a fit")
    how = (
        "wise: one run, between its weights and those that it started from; greedy: runs that do not lower the mean's "
        "score, from the best on; uniform: the mean of all. Validation cases choose; test cases are never looked at"
    )
    parser.add_argument("--method", choices=list(METHODS), required=True, help=how)
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    return parser


def _check(options: argparse.Namespace) -> None:
    for path in options.runs:
        if not is_run(path):
            raise CommandError(f"{path} is no run: it has no recipe.yaml; write `{FORM}` with folders of fits")
    if len({path.resolve() for path in options.runs}) < len(options.runs):
        raise CommandError("a run is named twice: a mean would count it twice")
    runs = len(options.runs)
    if options.method == "wise" and runs != 1:
        raise CommandError(f"--method wise takes one run and found {runs}: the other end are the weights it began from")
    if options.method != "wise" and runs == 1:
        raise CommandError(f"--method {options.method} takes a mean of several runs and found one")
    if options.output.exists():
        raise CommandError(f"{options.output} is there already: take another --output")


def merge_runs(runs: Sequence[Finished], method: str, output: Path, command: str) -> bool:
    """Merge, and write the folder; return whether validation cases can score it.

    Raises:
        ValueError: The runs do not belong together.
    """
    first = runs[0]
    check_together(runs)
    source = source_of(first) if method == "wise" else None
    judge = Judge(first.path, first.recipe)
    judged = _same_cases(runs, judge, method)
    with written_aside(output, overwrite=False) as folder:
        checkpoint = folder / "checkpoints" / "last.ckpt"
        checkpoint.parent.mkdir()
        write_checkpoint(checkpoint, first.tensors(), first.kept)
        judge.open(checkpoint)
        made = METHODS[method](runs, judge, source)
        if not judged:
            made.notes.append("not scored: the runs have no validation cases, or not the same")
        judge.fill(made.state, made.merged)
        kept = {**first.kept, OWN: {**first.kept[OWN], "merged": {"method": method, **made.facts}}}
        write_checkpoint(checkpoint, judge.module.network.state_dict(), kept)
        write_facts(folder, first, command)
        if made.tried:
            _write_table(folder / "merging.csv", made.tried, judge)
    _tell(output, made, judge)
    return judged


def _same_cases(runs: Sequence[Finished], judge: Judge, method: str) -> bool:
    """Return whether validation cases can tell how good the result is: those of all runs, which none was trained on."""
    cases = judge.cases()
    if not cases and method != "uniform":
        raise ValueError(
            f"{runs[0].name} has no validation cases, and --method {method} chooses by them, never by a test"
        )
    for other in runs[1:]:
        if sorted(Judge(other.path, other.recipe).cases()) != sorted(cases):
            if method == "uniform":
                return False
            raise ValueError(
                f"{other.name} has other validation cases than {runs[0].name}, so one may have been trained on those "
                "of the other: merge runs of one fold, or say --method uniform, which chooses nothing"
            )
    return bool(cases)


def _wise(runs: Sequence[Finished], judge: Judge, source: SourceWeights | None) -> Merged:
    (one,) = runs
    assert source is not None
    tuned = one.tensors()
    judge.fill(tuned, merged=False)
    network = judge.module.network
    contract = one.contract
    before, kept = source_state(
        network, source, contract.classes, judge.module.adapters, judge.module.head, channels=contract.channels
    )
    judge.layers = judge.moved(before, tuned) | {name.rpartition(".")[0] for name in kept if "running_" in name}
    share, tried = choose_share(before, tuned, _scoring(judge))
    origin, numbers = one.source["origin"], dict(network.named_parameters())
    note = f"{origin} gives all tensors, so the head is between both too"
    if kept:
        told = _some([name for name in kept if name in numbers])
        note = f"kept as fine-tuned, since {origin} does not give them or not whole: {told}"
    facts = {"runs": [one.name], "share_of_fine_tuned": share, "kept": kept}
    return Merged(interpolated(before, tuned, share), share < 1, tried, facts, [note])


def _greedy(runs: Sequence[Finished], judge: Judge, source: SourceWeights | None) -> Merged:
    by_name = {each.name: each for each in runs}
    judge.layers = _moved_in_some(runs, judge)
    soup, tried = greedy_soup(list(by_name), lambda name: by_name[name].tensors(), _scoring(judge))
    members = [each.name for each in tried[: len(runs)] if each.taken]
    return Merged(soup.mean(), soup.count > 1, tried, {"runs": members}, _on_heads(runs))


def _uniform(runs: Sequence[Finished], judge: Judge, source: SourceWeights | None) -> Merged:
    soup = Soup.of(runs[0].tensors())
    for each in runs[1:]:
        soup = soup.add(each.tensors())
    judge.layers = _moved_in_some(runs, judge)
    return Merged(soup.mean(), True, [], {"runs": [each.name for each in runs]}, _on_heads(runs))


METHODS: dict[str, Callable[[Sequence[Finished], Judge, SourceWeights | None], Merged]] = {
    "wise": _wise,
    "greedy": _greedy,
    "uniform": _uniform,
}


def _moved_in_some(runs: Sequence[Finished], judge: Judge) -> set[str]:
    first = runs[0].tensors()
    return set().union(*(judge.moved(first, each.tensors()) for each in runs[1:]))


def _on_heads(runs: Sequence[Finished]) -> list[str]:
    """Return a line on stages that each run may have begun with other random numbers."""
    fresh, seeds = runs[0].kept[OWN].get("fresh"), {str(each.recipe.get("seed_everything")) for each in runs}
    if not fresh or len(seeds) == 1:
        return []
    return [f"each run began {', '.join(fresh)} with numbers of its own (seeds {', '.join(sorted(seeds))})"]


def _scoring(judge: Judge) -> Callable[[Mapping[str, Tensor], bool], float]:
    number = count(1)

    def score(state: Mapping[str, Tensor], merged: bool) -> float:
        found = judge.score(state, merged)
        print(f"scored {next(number)}: {judge.measure} {judge.sign * found:.4f}", flush=True)
        return found

    return score


def _write_table(path: Path, tried: Sequence[Tried], judge: Judge) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("candidate", judge.measure, "taken"))
        writer.writerows((each.name, f"{judge.sign * each.score:.6g}", each.taken) for each in tried)


def _tell(output: Path, made: Merged, judge: Judge) -> None:
    width = max([9, *(len(each.name) for each in made.tried)])
    lines = [f"{'candidate':{width}}  {judge.measure}"] if made.tried else []
    for each in made.tried:
        lines.append(f"{each.name:{width}}  {judge.sign * each.score:.4f}{'  taken' if each.taken else ''}")
    lines += [f"note: {note}" for note in made.notes]
    if judge.layers and made.merged:
        lines.append(
            f"note: running statistics of {len(judge.layers)} layers were estimated anew, from training patches"
        )
    if made.tried:
        lines.append("note: it was chosen by these cases, so on others expect less than its score on them")
    quoted = shlex.quote(str(output))
    lines.append(f"score it on the test:  python -m lightning_atlas test {quoted}")
    lines.append(f"hand it on:            python -m lightning_atlas export {quoted} --output FOLDER")
    print("\n".join(lines), flush=True)


def _some(names: Sequence[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
