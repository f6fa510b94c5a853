"""`inspect --rank`: several weights in an order for one recipe, without training; test cases are never read."""

import json
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_atlas.cli.comparing import Parts, build_parts, contract_differences
from lightning_atlas.cli.ranked_cases import WINDOWS, Units, chosen_cases, windows_of
from lightning_atlas.cli.ranking_report import in_words
from lightning_atlas.cli.recipes import CommandError, find_recipe
from lightning_atlas.cli.run_folder import is_run, last_checkpoint
from lightning_atlas.cli.words import Words
from lightning_atlas.contract import Contract
from lightning_atlas.data import ScanDataModule
from lightning_atlas.data.sampling import collate
from lightning_atlas.intake import SourceWeights, load_weights, read_weights
from lightning_atlas.intake.exported import build, check_network, public_spec
from lightning_atlas.networks import Network
from lightning_atlas.ranking import order as ranking
from lightning_atlas.ranking.features import draw_voxels, read_features

FORM = "inspect --rank WEIGHTS WEIGHTS ... --config RECIPE [--voxels N] [--cases N] [--json]"
SCRATCH = "scratch"
"""Stands for the recipe's network as it is initialised."""
UNTRAINED: dict[str, Any] = {
    **dict.fromkeys(("sha256", "licence", "head"), None),
    **{"encoder_share": 0.0, "fresh": [], "contract_stated": False, "differences": []},
}
"""What is known of that."""


@dataclass
class Candidate:
    """Weights in the network that they are for.

    Args:
        network: Filled, in evaluation mode.
        head: What its own outputs are, where they were trained.
        facts: For the report.
        adopts: As which weights the scans are to be prepared; as the recipe has it if `None`.
    """

    network: Network
    head: str | None
    facts: dict[str, Any]
    adopts: Contract | None = None


def run_rank(words: Sequence[str]) -> None:
    """Run the verb in this form.

    Args:
        words: After it.

    Raises:
        CommandError: Weights cannot be read or do not fit a network, or the recipe has no labelled cases to look at.
    """
    options, changes = rank_parser().read_with_changes(words)
    if len(set(options.rank)) < 2:
        raise CommandError(f"--rank orders two weights at least, found {' '.join(options.rank)}; write `{FORM}`")
    if options.voxels < 1 or options.cases < 1:
        raise CommandError(f"--voxels {options.voxels} --cases {options.cases}: both count, from 1")
    configs = [find_recipe(word) for word in options.config]
    found = rank(list(dict.fromkeys(options.rank)), configs, changes, options.voxels, options.cases)
    print(json.dumps(found, indent=2, ensure_ascii=False) if options.json else "\n".join(in_words(found)))


def rank_parser() -> Words:
    """Return what reads the words after the verb."""
    parser = Words("inspect", FORM, description=__doc__)
    parser.add_argument(
        "--rank", nargs="+", required=True, help=f"exports, published names, files, runs; {SCRATCH}: none, as a floor"
    )
    parser.add_argument(
        "--config", action="append", required=True, help="the recipe whose training cases are looked at"
    )
    parser.add_argument("--voxels", type=int, default=100, help="of each class in each case (100)")
    parser.add_argument("--cases", type=int, default=8, help="at most, of those to train and to validate on (8)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def rank(
    names: Sequence[str], configs: Sequence[Path], changes: Sequence[str], voxels: int, cases: int
) -> dict[str, Any]:
    """Return the scores of all weights on a recipe's cases, in plain values, the best first.

    Args:
        names: Of the weights.
        configs: Recipes in order.
        changes: Options that change them.
        voxels: Of each class in each case.
        cases: At most.

    Raises:
        CommandError: As `run_rank`.
    """
    given = {name: _read(name) for name in names}  # all of them first: a wrong name is told at once
    parts = build_parts(configs, changes, next((own for _, own in given.values() if own), None))
    data, found, looked_at = _data(parts, cases), [], {}
    for name in names:
        try:
            candidate = _candidate(*given.pop(name), parts)
            scores, looked_at = _measured(candidate, data, voxels)
        except (OSError, ValueError) as error:
            raise CommandError(f"{name}: {error}") from error
        found.append((candidate.facts, scores))  # and not the network
    columns = {key: [scores[key] for _, scores in found] for key in ranking.SCORES}
    placed = {key: ranking.places(column) for key, column in columns.items()}
    pairs = {key: ranking.not_distinguishable(column) for key, column in columns.items()}
    rows = [
        {
            "weights": names[number],
            **facts,
            "scores": {
                key: None if each is None else {**each._asdict(), "place": placed[key][number]}
                for key, each in scores.items()
            },
        }
        for number, (facts, scores) in enumerate(found)
    ]
    return {
        "configs": [str(path) for path in configs],
        **looked_at,
        "ranked": sorted(rows, key=_best_first),
        "not_distinguishable": {key: [[names[a], names[b]] for a, b in each] for key, each in pairs.items()},
        "caution": ranking.CAUTION,
    }


def _best_first(row: Mapping[str, Any]) -> tuple[float, float]:
    values = [row["scores"][key] for key in ("probe", "logme")]
    one, other = (-torch.inf if each is None else each["value"] for each in values)
    return -one, -other


def _read(name: str) -> tuple[SourceWeights | None, dict[str, Any] | None]:
    """Return weights with the network that they are known to fit; neither where the recipe's own is meant."""
    path = Path(name).expanduser()
    if name == SCRATCH and not path.exists():
        return None, None
    try:
        source = read_weights(str(last_checkpoint(path)) if is_run(path) else name)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    spec = source.network or (_network_of(path) if is_run(path) else None)
    return source, public_spec(spec) if spec else None


def _data(parts: Parts, most: int) -> ScanDataModule:
    """Return the recipe's data with only the cases that are looked at: no other is prepared or opened."""
    data = parts.data
    if parts.contract is None:
        raise CommandError(f"the recipe's data cannot be read here: {parts.missing}")
    if parts.module.task.predicts != "voxels":
        finds = "finds boxes" if parts.module.task.predicts == "boxes" else "is of whole scans"
        raise CommandError(f"weights are ranked voxel by voxel, and {type(parts.module.task).__name__} {finds}")
    if not isinstance(data, ScanDataModule):
        raise CommandError(f"weights are ranked on a ScanDataModule's scans, and the recipe has {type(data).__name__}")
    try:
        data.cases = chosen_cases(data.cases, most)
    except ValueError as error:
        raise CommandError(str(error)) from error
    return data


def _candidate(source: SourceWeights | None, own: dict[str, Any] | None, parts: Parts) -> Candidate:
    torch.manual_seed(0)  # of what the weights do not fill
    module = parts.module
    if source is None:
        network = deepcopy(module.network)
        return Candidate(network.eval(), None, {"network": type(network).__name__} | UNTRAINED)
    network, stated = _network(source, own, parts), source.contract
    classes = stated.classes if stated else ()
    overlapping = stated is not None and stated.overlapping
    if classes:
        network.resize(len(classes) + (not overlapping))
    channels = parts.contract.channels if parts.contract else ()
    report = load_weights(network, source, classes, module.required_share, module.adapters, channels=channels)
    fresh = sorted(each.name for each in report.fresh)
    trained = bool(classes) and not report.fresh_outputs and not set(fresh) & set(network.output_axes())
    facts = {
        "network": type(network).__name__,
        "sha256": source.sha256,
        "licence": source.card.get("licence"),
        "encoder_share": report.encoder_share,
        "fresh": fresh,
        "head": ("sigmoid" if overlapping else "softmax") if trained else None,
        "contract_stated": stated is not None,
        "differences": contract_differences(stated, parts) if stated else [],
    }
    return Candidate(network.eval(), facts["head"], facts, stated if module.adopts else None)


def _network_of(run: Path) -> dict[str, Any] | None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    return ((recipe.get("model") or {}).get("init_args") or {}).get("network")


def _network(source: SourceWeights, own: dict[str, Any] | None, parts: Parts) -> Network:
    """Return the weights' own network, or the recipe's where there is none that can be built and takes its images."""
    ours, theirs = parts.contract or Contract(), source.contract
    if own is None or (theirs and len(theirs.channels) != len(ours.channels)):
        return deepcopy(parts.module.network)
    try:
        check_network(own)
    except ValueError:
        return deepcopy(parts.module.network)
    return build(own)


def _measured(
    candidate: Candidate, data: ScanDataModule, voxels: int
) -> tuple[dict[str, ranking.Score | None], dict[str, Any]]:
    """Return the scores of one candidate, and what was looked at; adds the cost to its facts."""
    if candidate.adopts is not None:
        data = deepcopy(data)
        data.adopt(candidate.adopts)
    data.setup("fit")
    exclusive, classes = not data.contract.overlapping, len(data.contract.classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = candidate.network.to(device)
    windows, units = windows_of(data, network), Units(data.cases)
    start, seen = time.monotonic(), 0
    for number in range(len(windows)):
        batch = collate([windows[number]])
        generator = torch.Generator().manual_seed(number)
        labelled = draw_voxels(batch, -(-voxels // WINDOWS), exclusive, network.context, generator)
        if len(labelled.places):
            units.add(batch, labelled, read_features(network, batch["image"].to(device), labelled.places))
            seen += batch["label"].numel()
    read = time.monotonic()
    kind, parts = units.divided()
    scores = ranking.score(parts, classes, candidate.head, ranking.resampled(len(parts)))
    candidate.facts["cost"] = {
        "seconds_features": read - start,
        "seconds_scores": time.monotonic() - read,
        "voxels_seen": seen,
        "voxels_scored": sum(len(each) for unit in parts for each in unit.states),
    }
    splits = {split: sum(case.split == split for case in data.cases) for split in ("train", "val")}
    told = {"data": data.describe(), "cases": splits, "windows": len(windows), "units": kind, "device": device.type}
    return scores, told
