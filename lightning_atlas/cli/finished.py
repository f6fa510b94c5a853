"""A run that ended, read to be merged with others, and what is written of the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lightning_atlas.adaptation.merging import check_alike
from lightning_atlas.cli.run_folder import TRAINING_DATA, environment, last_checkpoint, made_in
from lightning_atlas.contract import Contract, differences, in_words
from lightning_atlas.intake import SourceWeights, read_weights
from lightning_atlas.intake.weights import read_file

OWN, NETWORK = "lightning_atlas", "network."
KEPT = ("pytorch-lightning_version", "epoch", "global_step")
"""What merged weights have of a checkpoint besides tensors and what this library adds: no optimizer's state."""

SAME_START = "a mean is of use only between runs that start from the same weights"


@dataclass(frozen=True)
class Finished:
    """A run that ended.

    Args:
        path: Its folder.
        recipe: As merged then.
        kept: Its last checkpoint but for the tensors of the network, which `tensors` reads.
        contract: Of its weights.
    """

    path: Path
    recipe: dict[str, Any]
    kept: dict[str, Any]
    contract: Contract

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return str(self.path)

    @property
    def source(self) -> Mapping[str, str]:
        """Origin and hash of the weights that it started from; empty where it had none."""
        return self.kept[OWN].get("source") or {}

    def tensors(self) -> dict[str, Tensor]:
        """Return its weights under the network's own names, low-rank updates added in."""
        return read_file(last_checkpoint(self.path)).tensors


def read_run(path: Path) -> Finished:
    """Read what a run is, but for its weights.

    Raises:
        ValueError: Its checkpoint is of another program, or names no contract.
    """
    checkpoint = last_checkpoint(path)
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    if OWN not in content:
        raise ValueError(f"{checkpoint} was not written by a module of this library: only such runs can be merged")
    others = {name: each for name, each in content["state_dict"].items() if not name.startswith(NETWORK)}
    kept = {key: content[key] for key in (*KEPT, OWN)} | {"state_dict": others}
    recipe = yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8"))
    return Finished(path, recipe, kept, Contract.from_dict(content[OWN]["contract"]))


def check_together(runs: Sequence[Finished]) -> None:
    """Refuse runs whose weights have no mean.

    Raises:
        ValueError: Networks, classes, preprocessing or the weights that they started from differ, or there were none.
    """
    first, *others = runs
    check_alike({each.name: _shapes_of(each) for each in runs})
    for each in others:
        if each.contract.classes != first.contract.classes:
            found, wanted = (", ".join(one.contract.classes) for one in (each, first))
            raise ValueError(f"{each.name} has the classes {found}; {first.name} has {wanted}")
        if found := differences(first.contract, each.contract):
            own, other = in_words(found[0].weights), in_words(found[0].data)
            raise ValueError(f"the scans of {first.name} have {found[0].key} {own}, those of {each.name} {other}")
        if each.source.get("sha256") != first.source.get("sha256"):
            began = [one.source.get("origin", "no weights") for one in (each, first)]
            raise ValueError(f"{each.name} started from {began[0]} and {first.name} from {began[1]}: {SAME_START}")
    if others and not first.source:
        raise ValueError(f"the runs started from no weights: {SAME_START}")


def _shapes_of(finished: Finished) -> dict[str, Tensor]:
    return {name: each.to("meta") for name, each in finished.tensors().items()}


def source_of(one: Finished) -> SourceWeights:
    """Return the weights that a run started from, as they were.

    Raises:
        ValueError: There were none, they are not found, or are others now.
    """
    if not one.source:
        raise ValueError(f"{one.name} started from no weights (model.weights: null): there is nothing to go back to")
    origin, folder = one.source["origin"], made_in(one.path)
    try:
        source = read_weights(origin)
    except FileNotFoundError:
        if folder is None or not (folder / origin).exists():
            raise
        source = read_weights(str(folder / origin))
    if source.sha256 != one.source["sha256"]:
        raise ValueError(
            f"{origin} is not the file that {one.name} started from: its sha256 is {source.sha256[:12]}, and the "
            f"checkpoint says {one.source['sha256'][:12]}; put the former file back"
        )
    return source


def write_checkpoint(path: Path, state: Mapping[str, Tensor], kept: Mapping[str, Any]) -> None:
    """Write weights as a checkpoint that is tested, predicted with and exported, but not resumed.

    Args:
        path: The file.
        state: Of the network.
        kept: As `Finished` has it.
    """
    tensors = {f"{NETWORK}{name}": each.detach().cpu() for name, each in state.items()}
    torch.save({**kept, "state_dict": {**tensors, **kept["state_dict"]}}, path)


def write_facts(folder: Path, first: Finished, command: str) -> None:
    """Write recipe, environment and training data of merged weights, as a fit does.

    Args:
        folder: That is made.
        first: Of the runs.
        command: What was typed.
    """
    recipe = dict(first.recipe)
    arguments = dict(recipe["model"].get("init_args") or {})
    if "adaptation" in arguments:
        arguments["adaptation"] = None  # what it changed in the network is part of the weights
    recipe["model"] = {**recipe["model"], "init_args": arguments}
    header = f"# The recipe of {first.name}, to score and hand on what this made of it:\n# {command}\n"
    text = header + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    notes = [line for line in environment(command).splitlines() if not line.startswith("folder: ")]
    notes.append(f"folder: {made_in(first.path) or Path.cwd()}")
    (folder / "environment.txt").write_text("\n".join(notes) + "\n", encoding="utf-8")
    if (told := first.path / TRAINING_DATA).is_file():
        (folder / TRAINING_DATA).write_bytes(told.read_bytes())
