"""The verb `inspect`: what weights are, and what a recipe would take of them; nothing in a file is run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_atlas.cli.recipes import CommandError, find_recipe
from lightning_atlas.cli.run_folder import describe_run, is_run, last_checkpoint
from lightning_atlas.cli.words import Words
from lightning_atlas.intake import SourceWeights, read_weights, zoo
from lightning_atlas.intake.exported import is_export, precision, public_spec
from lightning_atlas.intake.key_rules import WRAPPERS
from lightning_atlas.intake.nests import NESTS
from lightning_atlas.intake.weights import HARMLESS

FORM = (
    "inspect RUN | inspect WEIGHTS [--config RECIPE [--picture FILE]] [--json] | "
    "inspect --config RECIPE [--picture FILE] | inspect --rank WEIGHTS WEIGHTS ... --config RECIPE"
)
CARD = ("licence", "citation", "training", "metrics", "source")
"""What an export says of itself that is shown."""


def run_inspect(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After it.

    Raises:
        CommandError: There are no such weights, they cannot be read, or the recipe is refused; or a fit would refuse
            them in it, or what is to move, which is raised when all else has been printed.
    """
    if "--rank" in words:
        from lightning_atlas.cli.ranking import run_rank  # loads Lightning and all parts

        run_rank(words)
        return
    options, changes = inspect_parser().read_with_changes(words)
    _check(options, changes)
    configs = [find_recipe(word) for word in options.config]
    if options.weights is None:
        from lightning_atlas.cli.planning import stated_weights  # loads Lightning and all parts

        options.weights = stated_weights(configs, changes)
    if options.weights is None:
        source, found = None, {}
    else:
        run = Path(options.weights)
        if is_run(run) and not options.config and not options.json:
            print(describe_run(run))
            return
        source, name = _read(run, options.weights)
        found = describe(source, name)
    if options.config:
        from lightning_atlas.cli.comparing import compare

        found["recipe"] = compare(source, configs, changes, Path(options.picture) if options.picture else None)
    print(json.dumps(found, indent=2, ensure_ascii=False) if options.json else "\n".join(in_words(found)), flush=True)
    if told := refusals(found.get("recipe", {})):
        raise CommandError("\n".join(["a fit would refuse this: " + told[0], *told[1:]]))


def refusals(recipe: Mapping[str, Any]) -> list[str]:
    """Return why a fit would refuse what is to move, or the weights.

    That data are not here, so that the length of the run is not known, is no refusal.
    """
    unknown = recipe.get("data_not_read") and recipe.get("total_steps") is None
    keys = ("refused",) if unknown else ("plan_refused", "refused")
    return [recipe[key] for key in keys if key in recipe]


def _check(options: Any, changes: Sequence[str]) -> None:
    if options.weights is None and not options.config:
        inspect_parser().error("the following arguments are required: weights, or --config RECIPE")
    if changes and not options.config:
        raise CommandError(f"{' '.join(changes)} changes a recipe, and none is given: add --config RECIPE")
    if options.picture and not options.config:
        raise CommandError("--picture shows the rates of a recipe, and none is given: add --config RECIPE")
    if options.picture and Path(options.picture).suffix.lower() != ".png":
        raise CommandError(f"--picture writes a PNG, and {options.picture} does not end in .png")


def _read(run: Path, given: str) -> tuple[SourceWeights, str]:
    name = str(last_checkpoint(run)) if is_run(run) else given
    try:
        return read_weights(name), name
    except (OSError, ValueError) as error:
        no_run = "\nnor is it a run: it has no recipe.yaml" if run.is_dir() and not is_export(run) else ""
        raise CommandError(f"{error}{no_run}") from error


def inspect_parser() -> Words:
    """Return what reads the words after the verb."""
    parser = Words("inspect", FORM, description=__doc__)
    told = "an export's folder, a published name, a file, or the folder of a run; by default those of the recipe"
    parser.add_argument("weights", nargs="?", help=told)
    told = "a recipe: what would it take of the weights, what would move, and how fast?"
    parser.add_argument("--config", action="append", default=[], help=told)
    parser.add_argument("--picture", metavar="FILE", help="draw how fast each stage would move over the run, as a PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def describe(source: SourceWeights, name: str) -> dict[str, Any]:
    """Return what weights are, in plain values.

    Args:
        source: As read.
        name: What was asked for.
    """
    path = _path_of(name)
    file = path / "weights.safetensors" if is_export(path) else path
    entry, like = _published(source)
    tensors = source.tensors
    network = source.network or (entry.network if entry else None)
    return {
        "weights": name,
        "path": str(path),
        "kind": _kind(path),
        "size_bytes": file.stat().st_size if file.is_file() else None,
        "sha256": source.sha256,
        "nest": nest(path) if path.is_file() and path.suffix != ".safetensors" else None,
        "prefix": shared_prefix(tensors) or None,
        "tensors": len(tensors),
        "parameters": sum(each.numel() for each in tensors.values()),
        "precision": precision(tensors),
        "published_as": {"name": entry.name, "by": "sha256"} if entry else None,
        "looks_like": [each._asdict() for each in like],
        "network": public_spec(network) if network else None,
        "contract": source.contract.to_dict() if source.contract else None,
        "classes": list(source.contract.classes) if source.contract else [],
        "card": {key: source.card[key] for key in CARD if source.card.get(key)},
        "notes": list(source.notes),
    }


def _path_of(name: str) -> Path:
    path, published = Path(name).expanduser(), zoo.entries()
    if path.exists():
        return path
    name = name.rpartition("#")[0] or name  # behind it stands which weights of the file are meant
    if Path(name).expanduser().exists():
        return Path(name).expanduser()
    return published[name].path if name in published else Path(name.partition("=")[2]).expanduser()


def _kind(path: Path) -> str:
    if is_export(path):
        return "export of lightning_atlas"
    if path.is_dir():
        return "folder of nnU-Net results"
    return "safetensors" if path.suffix == ".safetensors" else "checkpoint of torch"


def _published(source: SourceWeights) -> tuple[zoo.ZooEntry | None, list[zoo.Likeness]]:
    """Return the published weights with this hash, or else those that tensors of an unknown network look like."""
    entry = next((each for each in zoo.entries().values() if each.hash and source.sha256.startswith(each.hash)), None)
    return entry, [] if entry or source.network else zoo.nearest(source.tensors)


def nest(path: Path) -> str | None:
    """Return under which keys of a checkpoint its tensors lie; `None` where they lie at the top."""
    with torch.serialization.safe_globals(HARMLESS):
        content = torch.load(path, map_location="meta", weights_only=True)
    found: list[str] = []
    while key := next((key for key in NESTS if _holds_tensors(content.get(key))), None):
        found.append(key)
        content = content[key]
    return ".".join(found) or None


def _holds_tensors(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(each, Tensor) or _holds_tensors(each) for each in value.values())


def shared_prefix(names: Sequence[str] | Mapping[str, Any]) -> str:
    """Return what wrappers put before every one of the names."""
    prefix = ""
    while names and (
        step := next((each for each in WRAPPERS if all(name.startswith(prefix + each) for name in names)), None)
    ):
        prefix += step
    return prefix


def in_words(found: Mapping[str, Any]) -> list[str]:
    """Return what was found as lines for a person."""
    lines = _weights_lines(found) if "weights" in found else ["weights: none, the recipe starts from scratch"]
    return lines + (_recipe_lines(found["recipe"]) if "recipe" in found else [])


def _weights_lines(found: Mapping[str, Any]) -> list[str]:
    size = found["size_bytes"]
    lines = [
        f"weights: {found['path']}",
        f"kind: {found['kind']}" + (f", {size / 1e6:.1f} MB" if size else ""),
        f"sha256: {found['sha256']}",
        f"holds: {found['tensors']} tensors, {found['parameters']:,} numbers in {found['precision']}"
        + (f", under {found['nest']}" if found["nest"] else "")
        + (f", all names begin with {found['prefix']}" if found["prefix"] else ""),
    ]
    if found["published_as"]:
        lines.append(f"published as: {found['published_as']['name']} (the same file)")
    elif found["looks_like"]:
        likely = ", ".join(
            f"{each['name']} ({each['matched']} of {each['total']} tensors)" for each in found["looks_like"]
        )
        lines.append(f"published as: no file of this hash; names and shapes are most like {likely}")
    if network := found["network"]:
        arguments = ", ".join(f"{key}={value}" for key, value in network["init_args"].items())
        lines.append(f"network: {network['class_path']}({arguments})")
    lines += _contract_lines(found["contract"])
    lines += [f"{key}: {value}" for key, value in found["card"].items() if isinstance(value, str)]
    return lines + [f"note: {note}" for note in found["notes"]]


def _contract_lines(contract: Mapping[str, Any] | None) -> list[str]:
    if contract is None:
        return ["contract: the file does not say what the weights expect of an image"]
    stated = {
        key: each for key, each in contract.items() if each not in (None, []) and key not in ("classes", "format")
    }
    lines = ["contract:", *(f"  {key}: {each}" for key, each in stated.items())]
    classes = contract["classes"]
    return [*lines, f"classes ({len(classes)}): {', '.join(classes)}" if classes else "classes: none (no head of use)"]


def _recipe_lines(found: Mapping[str, Any]) -> list[str]:
    lines = ["", f"into {found['network']} of {' '.join(found['configs'])}:"]
    if found["data_not_read"]:
        lines.append(f"its data cannot be read here, so its classes and contract are unknown: {found['data_not_read']}")
    lines += [found["report"]] if "report" in found else []
    if "head" in found:
        named = (f"{len(names)} {word} ({', '.join(names)})" for word, names in found["head"].items() if names)
        lines.append(f"head by class name: {'; '.join(named)}".replace("not_used", "not used"))
    if "differences" in found:
        lines.append("contract: the data are what the weights expect" if not found["differences"] else "contract:")
    for each in found.get("differences", ()):
        words = [word for word in ("allowed", "adopted") if each[word]]
        lines.append(f"  {each['says']}" + (f" ({words[0]} by the recipe)" if words else ""))
    return lines + _plan_lines(found)


def _plan_lines(found: Mapping[str, Any]) -> list[str]:
    if "table" not in found:
        return [] if found["plan_refused"] in refusals(found) else [f"what would move: {found['plan_refused']}"]
    return ["", f"in a fit of {found['total_steps']} optimizer steps:", found["table"]]
