"""The verb `export`: from a run's folder to weights that somebody else can start from or segment with."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_atlas import networks
from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.cli.run_folder import TRAINING_DATA, is_run, last_checkpoint
from lightning_atlas.cli.run_scores import run_metrics
from lightning_atlas.cli.words import Words
from lightning_atlas.contract import Contract
from lightning_atlas.intake import zoo
from lightning_atlas.intake.bundle import write_bundle
from lightning_atlas.intake.exported import (
    OURS,
    build,
    check_network,
    is_export,
    public_spec,
    read_card,
    write_export,
)
from lightning_atlas.intake.weights import SourceWeights, read_file
from lightning_atlas.networks.detection import Detector

FORM = "export RUN --output FOLDER"
KINDS = {
    "Segmentation": "exclusive",
    "MultiLabelSegmentation": "overlapping",
    "Classification": "class",
    "MultiLabelClassification": "labels",
    "Regression": "values",
    "Detection": "boxes",
}
WINDOW = ("patch", "overlap", "batch_size", "mirror")
PRIVATE = ("command", "folder")
"""Lines of a run's environment that hold paths of the machine on which it ran."""
SPDX = r"[A-Za-z0-9.+:-]+( (AND|OR|WITH) [A-Za-z0-9.+:-]+)*"


def run_export(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After it.

    Raises:
        CommandError: The run cannot be exported, or the output is there already.
    """
    options = export_parser().parse_args(list(words))
    if not is_run(options.run):
        raise CommandError(f"{options.run} is no run: it has no recipe.yaml; write `{FORM}` with a folder of a fit")
    if options.licence and not re.fullmatch(SPDX, options.licence):
        raise CommandError(f"--licence {options.licence!r} is no SPDX expression; write Apache-2.0, CC-BY-4.0, ...")
    try:
        print("\n".join(export_run(options)))
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error


def export_parser() -> argparse.ArgumentParser:
    """Return what reads the words after the verb."""
    parser = Words("export", FORM, description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a fit, with recipe.yaml and checkpoints/last.ckpt")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    parser.add_argument("--half", action="store_true", help="store numbers in 16 bits: half the size, nearly the same")
    parser.add_argument("--licence", help="of the weights, as an SPDX name: Apache-2.0, CC-BY-4.0, CC-BY-NC-4.0, ...")
    parser.add_argument("--citation", help="what users should cite")
    parser.add_argument("--bundle", action="store_true", help="write the layout of a MONAI bundle instead")
    return parser


def export_run(options: argparse.Namespace) -> list[str]:
    """Write the folder, and return the lines that say what it is.

    Raises:
        ValueError: The run lacks something, or the folder is there.
    """
    run, output = options.run, options.output
    checkpoint = last_checkpoint(run)
    source, recipe = read_file(checkpoint), yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    contract = source.contract
    if contract is None or not contract.classes:
        raise ValueError(f"{checkpoint} names no classes, so nobody could tell what its outputs mean")
    network, notes = _network(recipe, source, contract)
    kept = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    own = kept.get("lightning_atlas", {})
    facts = {
        "task": _task(recipe, notes),
        "preprocessing": _preprocessing(recipe),
        "training": {**_training_data(run), "steps": kept["global_step"], "epochs": kept["epoch"] + 1, **_merged(own)},
        "metrics": run_metrics(run, contract.classes, contract.predicts),
        "environment": _environment(run),
        "licence": options.licence,
        "citation": options.citation,
        "source": _source(own.get("source")),
    }
    if options.bundle and contract.predicts != "voxels":
        told = "boxes" if contract.predicts == "boxes" else "whole scans"
        raise ValueError(f"the run predicts {told}, and a bundle as written here segments: leave out --bundle")
    write = write_bundle if options.bundle else write_export
    values = write(output, source.tensors, contract, network, facts, options.half, options.overwrite)
    if not options.licence:
        notes.append("no licence was given, so nobody may use these weights: say --licence SPDX, such as Apache-2.0")
    return [*_told(output, values, options.bundle), *(f"note: {note}" for note in notes)]


def _told(output: Path, values: Mapping[str, Any], bundle: bool) -> list[str]:
    weights = values["weights"]
    what = f"{weights['tensors']} tensors, {weights['parameters']:,} numbers in {weights['precision']}"
    files = "a MONAI bundle" if bundle else "weights.safetensors, atlas.json and README.md"
    lines = [f"{output}: {files} ({what}, {weights['size_bytes'] / 1e6:.1f} MB), {len(values['classes'])} classes"]
    if not bundle and values["contract"]["modality"] != "photograph":
        lines.append(f"predict with it:  python -m lightning_atlas predict --weights {output} --input DIR --output DIR")
    if not bundle:
        lines.append(
            f"start from it:    python -m lightning_atlas fit RECIPE --model.weights {output} --model.contract adopt"
        )
    return lines


def _network(recipe: Any, source: SourceWeights, contract: Contract) -> tuple[dict[str, Any], list[str]]:
    """Return the network that the checkpoint's tensors fit, and what a person should know of it."""
    given = (recipe.get("model") or {}).get("init_args", {}).get("network")
    if not isinstance(given, Mapping) or "class_path" not in given:
        raise ValueError("recipe.yaml of the run names no network in model.init_args.network")
    spec, outputs = public_spec(given), len(contract.classes)
    if contract.predicts == "boxes":
        spec = _detecting(spec)
    elif contract.predicts != "voxels":
        spec = _pooled(spec, recipe)
    elif not contract.overlapping:
        outputs += 1
    if "out_channels" in spec["init_args"]:
        spec["init_args"]["out_channels"] = outputs
    if not spec["class_path"].startswith(f"{OURS}."):
        return spec, [f"{spec['class_path']} is code of your own: `predict --weights` cannot build it elsewhere"]
    check_network(spec)
    wanted = {name: tuple(each.shape) for name, each in build(spec, outputs).state_dict().items()}
    found = {name: tuple(each.shape) for name, each in source.tensors.items()}
    if odd := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise ValueError(
            f"the network of the run's recipe has other tensors than its checkpoint: {odd[0]} is "
            f"{found.get(odd[0])} in the checkpoint and {wanted.get(odd[0])} in {spec['class_path']}"
        )
    return spec, []


def _pooled(spec: dict[str, Any], recipe: Any) -> dict[str, Any]:
    """Return the network that a task of whole scans makes of the recipe's."""
    if spec["class_path"] == f"{OURS}.PooledEncoder":
        return spec
    arguments = recipe["model"]["init_args"].get("task", {}).get("init_args", {})
    told = {name: arguments[name] for name in ("pooling", "dropout") if name in arguments}
    init_args = {"network": spec, "out_channels": 1, **told}
    return {"class_path": f"{OURS}.PooledEncoder", "init_args": init_args}


def _detecting(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the network that `Detection` makes of the recipe's."""
    own = spec["class_path"].startswith(f"{OURS}.")
    if not own or issubclass(getattr(networks, spec["class_path"].rpartition(".")[2]), Detector):
        return spec
    return {"class_path": f"{OURS}.RetinaDetector", "init_args": {"network": spec, "out_channels": 1}}


def _task(recipe: Any, notes: list[str]) -> dict[str, Any] | None:
    given = recipe["model"]["init_args"].get("task") or {}
    kind = KINDS.get(str(given.get("class_path")).rpartition(".")[2])
    arguments = given.get("init_args", {})
    window = arguments.get("window", {})
    searched = {name: arguments[name] for name in ("overlap", "most") if kind == "boxes" and name in arguments}
    if kind is not None and window is None:
        return {"kind": kind, "window": None, **searched}
    if kind is None or not str(window.get("class_path")).endswith("SlidingWindow"):
        notes.append("its task or window is code of your own: `predict --weights` cannot build it elsewhere")
        return None
    sizes = {name: window["init_args"][name] for name in WINDOW if name in window.get("init_args", {})}
    threshold = {"threshold": arguments["threshold"]} if arguments.get("threshold") else {}
    return {"kind": kind, "window": sizes, **threshold, **searched}


def _preprocessing(recipe: Any) -> list[Any] | None:
    """Return the recipe's transforms; where it adopted a contract, that is adopted again over them."""
    return (recipe.get("data") or {}).get("init_args", {}).get("preprocess")


def _training_data(run: Path) -> dict[str, Any]:
    path = run / TRAINING_DATA
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"description": None, "subjects": None, "datasets": None}


def _merged(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the verb `merge` made the weights, without names of folders; nothing where it did not."""
    given = own.get("merged")
    return {"merged": {**given, "runs": len(given["runs"])}} if given else {}


def _environment(run: Path) -> dict[str, str] | None:
    path = run / "environment.txt"
    if not path.is_file():
        return None
    lines = (line.partition(": ") for line in path.read_text(encoding="utf-8").splitlines())
    return {key: text.partition(" (")[0] if key == "python" else text for key, _, text in lines if key not in PRIVATE}


def _source(given: Mapping[str, str] | None) -> dict[str, Any] | None:
    """Return what the run started from: its name without the folders of this machine, its hash, its licence."""
    if not given:
        return None
    origin, sha256 = given["origin"], given["sha256"]
    published = next((each for each in zoo.entries().values() if each.hash and sha256.startswith(each.hash)), None)
    licence = published.licence if published else None
    if licence is None and is_export(Path(origin)):
        licence = read_card(Path(origin))["licence"]
    return {"name": published.name if published else Path(origin).name, "sha256": sha256, "licence": licence}
