"""From a file or a published name into a network: rename, match strictly, copy, and report all of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_atlas.adaptation import zoo
from lightning_atlas.adaptation.inflation import HeadByName
from lightning_atlas.adaptation.weights import SUFFIXES, SourceWeights, read_file
from lightning_atlas.networks.base import Network, stage_parameters

PREFIXES = ("module.", "_orig_mod.", "network.", "model.", "backbone.", "net.", "encoder.")
"""What wrappers put before a name: DataParallel, torch.compile, and modules that hold the network."""
SHOWN = 8
"""Lines that a printed report gives to each group."""


class Unmatched(NamedTuple):
    """A tensor on one side for which the other has none of that name and shape.

    Args:
        name: As on its own side.
        shape: Its own.
        other: The shape under the same name on the other side, if there is one.
    """

    name: str
    shape: tuple[int, ...]
    other: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.name} {_shape(self.shape)}" + ("" if self.other is None else f" (there {_shape(self.other)})")


class Reshaped(NamedTuple):
    """A tensor of which parts were taken over.

    Args:
        source: Name in the file.
        name: Name in the network.
        how: What was taken and what was not.
        complete: Nothing of it was left as initialised.
    """

    source: str
    name: str
    how: str
    complete: bool


@dataclass
class IntakeReport:
    """What became of each tensor of a file and of a network; each is in exactly one list of its side.

    Args:
        origin: The file.
        prefix: What was dropped from the front of the file's names.
        loaded: Names that are the same on both sides.
        renamed: Name in the file, name in the network.
        reshaped: Tensors of which parts were taken over.
        fresh: Tensors of the network that stayed as initialised.
        left_over: Tensors of the file that nothing took.
        encoder_share: Share of the encoder's parameters, counted in numbers, that was loaded.
    """

    origin: str
    prefix: str = ""
    loaded: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    reshaped: list[Reshaped] = field(default_factory=list)
    fresh: list[Unmatched] = field(default_factory=list)
    left_over: list[Unmatched] = field(default_factory=list)
    encoder_share: float = 0.0

    @property
    def fresh_names(self) -> set[str]:
        """Names in the network of all tensors that hold at least one number as initialised."""
        return {each.name for each in self.fresh} | {each.name for each in self.reshaped if not each.complete}

    def __str__(self) -> str:
        words = {"fresh": "fresh (new, as initialised)", "left_over": "left over (in the file, not used)"}
        counts = ", ".join(
            f"{len(getattr(self, group))} {words.get(group, group)}"
            for group in ("loaded", "renamed", "reshaped", "fresh", "left_over")
        )
        lines = [f"tensors of {self.origin}: {counts}; {self.encoder_share:.1%} of the encoder's parameters"]
        if self.renamed:
            source, name = self.renamed[0]
            lines.append(f"  renamed    {self.prefix!r} dropped: {source} -> {name}" + _rest(self.renamed, 1))
        lines += _group("reshaped", [f"{each.name} {each.how}" for each in self.reshaped])
        lines += _group("fresh", self.fresh)
        lines += _group("left over", self.left_over)
        return "\n".join(lines)


def read_weights(name_or_path: str) -> SourceWeights:
    """Read weights by the path of a file or the name of published ones; a file goes first.

    Raises:
        FileNotFoundError: There is neither.
        ValueError: The file cannot be read safely, is damaged or empty, or is not the published one.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return read_file(path)
    published = zoo.entries()
    if name_or_path in published:
        entry = published[name_or_path]
        return read_file(entry.path, entry.sha256)
    raise FileNotFoundError(_not_found(name_or_path, path, list(published)))


def load_weights(
    network: Network, source: SourceWeights, classes: Sequence[str] = (), required_share: float = 0.9
) -> IntakeReport:
    """Copy into a network what fits by name and shape; outputs of the head go by the names of their classes.

    Args:
        network: Changed in place, and only after everything was matched.
        source: As read; known prefixes are dropped from the front of all its names.
        classes: Of the network's outputs in order, without background; with them and those of the source's contract,
            the head takes the outputs whose class it shares. Without either it is taken whole or not at all.
        required_share: The least share of the encoder's parameters that must be loaded.

    Raises:
        ValueError: Less than that was found; the network is as before.
    """
    if not 0.0 <= required_share <= 1.0:
        raise ValueError(f"required_share is {required_share}; it is a share of the whole, from 0 to 1")
    targets = {name: each for name, each in network.state_dict().items() if isinstance(each, Tensor)}
    prefix = common_prefix(source.tensors, targets)
    report = IntakeReport(source.origin, prefix)
    values: dict[str, Tensor] = {}
    head = HeadByName(network, source.contract.classes if source.contract else (), classes)
    for name, target in targets.items():
        key = prefix + name
        tensor = source.tensors.get(key)
        if tensor is None:
            report.fresh.append(Unmatched(name, tuple(target.shape)))
        elif (taken := head.take(name, tensor, target)) is not None:
            values[name], how, complete = taken
            report.reshaped.append(Reshaped(key, name, how, complete))
        elif tensor.shape != target.shape or name in head.axes:
            report.fresh.append(Unmatched(name, tuple(target.shape), tuple(tensor.shape)))
            report.left_over.append(Unmatched(key, tuple(tensor.shape), tuple(target.shape)))
        else:
            values[name] = tensor
            report.renamed.append((key, name)) if prefix else report.loaded.append(name)
    unknown = (key for key in source.tensors if not (key.startswith(prefix) and key[len(prefix) :] in targets))
    report.left_over += [Unmatched(key, tuple(source.tensors[key].shape)) for key in unknown]
    report.encoder_share = _encoder_share(network, values)
    _check_share(network, report, required_share)
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
    return report


def common_prefix(source: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> str:
    """Return the combination of known prefixes without which most of the source's names and shapes fit the targets."""
    candidates = {""}
    for key in source:
        prefix = ""
        while step := next((known for known in PREFIXES if key.startswith(known, len(prefix))), None):
            prefix += step
            candidates.add(prefix)

    def fitting(prefix: str) -> tuple[int, int, int]:
        names = [(key, key[len(prefix) :]) for key in source if key.startswith(prefix)]
        known = [(key, name) for key, name in names if name in targets]
        return sum(source[key].shape == targets[name].shape for key, name in known), len(known), -len(prefix)

    return max(sorted(candidates), key=fitting)


def _encoder_share(network: Network, values: Mapping[str, Tensor]) -> float:
    stages = [stage for stage in network.stages() if stage.part == "encoder"]
    parameters = {name: each.numel() for stage in stages for name, each in stage_parameters(network, stage).items()}
    loaded = sum(count for name, count in parameters.items() if name in values)
    return loaded / max(1, sum(parameters.values()))


def _check_share(network: Network, report: IntakeReport, required: float) -> None:
    if report.encoder_share >= required and (report.loaded or report.renamed):
        return
    raise ValueError(
        f"{report.origin} fills {report.encoder_share:.1%} of the encoder of {type(network).__name__}, and "
        f"{required:.1%} are required: probably weights of another network, or of one with other arguments. "
        f"Fresh would be {_first(report.fresh)}; left over {_first(report.left_over)}. "
        f"Set model.init_args.network to theirs, or lower model.init_args.required_share"
    )


def _not_found(name: str, path: Path, published: list[str]) -> str:
    known = get_close_matches(name, published, n=3, cutoff=0.4) or published[:3]
    folder = path.parent
    files = [each.name for each in sorted(folder.iterdir()) if each.suffix in SUFFIXES] if folder.is_dir() else []
    near = [str(folder / each) for each in get_close_matches(path.name, files, n=3, cutoff=0.4) or files[:3]]
    what = "a folder, not a file of weights" if path.is_dir() else "neither a file nor the name of published weights"
    return (
        f"{name} is {what}. Nearest published: {', '.join(known) or 'none'}; "
        f"nearest files in {folder.absolute()}: {', '.join(near) or 'none'}"
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _first(entries: Sequence[Unmatched], shown: int = 3) -> str:
    return (", ".join(str(each) for each in entries[:shown]) or "nothing") + _rest(entries, shown)


def _rest(entries: Sequence[object], shown: int) -> str:
    return f" and {len(entries) - shown} more" if len(entries) > shown else ""


def _group(title: str, entries: Sequence[object]) -> list[str]:
    lines = [f"  {title:<10} {each}" for each in entries[:SHOWN]]
    return [*lines, f"  {title:<10}{_rest(entries, SHOWN)}"] if len(entries) > SHOWN else lines
