"""What weights are and are not, in plain words, made from what is known of them and from nothing else."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

UNKNOWN = "not stated"
PREDICTED = {
    "class": "puts a scan in one of {} classes ({}):",
    "labels": "says which of {} labels a scan has ({}):",
    "values": "says {} numbers of a scan ({}):",
    "boxes": "finds boxes around {} kinds of structures in {} scans:",
}
"""Where not of voxels, in the words of a contract."""


def model_card(values: Mapping[str, Any], commands: Callable[[Mapping[str, Any]], Iterable[str]] | None = None) -> str:
    """Return the text of an export's README.

    Args:
        values: What `atlas.json` holds.
        commands: Returns the lines on how to use it; those of an export by default.
    """
    parts = [_title, _limits, _image, _scores, partial(_use, commands or own_commands), _made, _rights]
    return "\n\n".join("\n".join(part(values)) for part in parts) + "\n"


def _title(values: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {values['name']}"
    yield ""
    name = values["network"]["class_path"].rpartition(".")[2]
    scans = values["contract"].get("modality") or "3D"
    size = f"{values['weights']['parameters']:,} numbers in {values['weights']['precision']}"
    found = PREDICTED.get(values["contract"].get("predicts"), "finds {} structures in {} scans:")
    yield f"Weights of a network ({name}, {size}) that {found.format(len(values['classes']), scans)}"
    yield ""
    yield from textwrap.wrap(", ".join(values["classes"]), 110, break_on_hyphens=False)
    yield ""
    if values["contract"].get("predicts") == "boxes":
        yield "It says where each of them is by boxes with scores, in millimetres, and draws nothing."
    elif values["contract"].get("predicts", "voxels") != "voxels":
        yield "It says this of a whole scan, from the features of an encoder, and draws nothing."
    elif values["contract"].get("overlapping"):
        yield "A voxel may be in several of them at once."
    else:
        yield "Each voxel is in one of them at most."


def _limits(values: Mapping[str, Any]) -> Iterator[str]:
    training = values["training"] or {}
    counts = training.get("subjects") or {}
    yield "## What it was trained on, and what it is not"
    yield ""
    yield f"Trained on: {training.get('description') or UNKNOWN}."
    told = ", ".join(f"{count} for {split}" for split, count in counts.items())
    yield f"Subjects: {told or UNKNOWN}. Datasets: {', '.join(training.get('datasets') or []) or UNKNOWN}."
    if merged := training.get("merged"):
        yield ""
        yield f"They are no training's own: the weights of {merged['runs']} were merged (method {merged['method']})."
    yield ""
    yield "It is no medical device and nobody has examined it as one. What it does on scans of other machines,"
    yield "protocols, diseases or ages than those above is not known. Look at every prediction before you rely on it."


def _image(values: Mapping[str, Any]) -> Iterator[str]:
    contract = values["contract"]
    yield "## What it expects of an image"
    yield ""
    yield "The commands below bring every scan there by themselves."
    yield ""
    yield "| | |"
    yield "|---|---|"
    words = {
        "modality": contract.get("modality"),
        "channels": ", ".join(contract.get("channels") or ()),
        "orientation of the voxel grid": contract.get("orientation"),
        "voxel size": _joined(contract.get("spacing_mm"), " x ", " mm"),
        "intensities": _intensities(contract),
    }
    for name, text in words.items():
        yield f"| {name} | {text or UNKNOWN} |"


def _scores(values: Mapping[str, Any]) -> Iterator[str]:
    yield "## How well it does"
    yield ""
    metrics = values["metrics"]
    if not metrics:
        yield "No scores were kept with these weights."
        return
    cases = metrics["cases"]
    measured = "Scores" if "measures" in metrics else "Dice"
    yield f"{measured} on {cases} {'case' if cases == 1 else 'cases'} of the {metrics['split']}."
    yield metrics["note"]
    if "measures" in metrics:
        yield from _scan_scores(metrics)
        return
    yield ""
    yield "| structure | Dice | 95 % interval | cases |"
    yield "|---|---|---|---|"
    for name, row in {**metrics["classes"], "mean": metrics["mean"]}.items():
        given = row["low"] is not None
        between = f"{row['low']:.3f} to {row['high']:.3f}" if given else "none"
        yield f"| {name} | {'none' if row['dice'] is None else format(row['dice'], '.3f')} | {between} | {row['n']} |"


def _scan_scores(metrics: Mapping[str, Any]) -> Iterator[str]:
    measures = metrics["measures"]
    yield ""
    yield f"| | cases | {' | '.join(measures)} |"
    yield f"|---|---|{'---|' * len(measures)}"
    for name, row in metrics["rows"].items():
        cells = []
        for measure in measures:
            value, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
            interval = "" if low is None else f" ({low:.3f} to {high:.3f})"
            cells.append("none" if value is None else f"{value:.3f}{interval}")
        yield f"| {name} | {row['n']:g} | {' | '.join(cells)} |"


def _use(commands: Callable[[Mapping[str, Any]], Iterable[str]], values: Mapping[str, Any]) -> Iterator[str]:
    yield "## How to use it"
    yield ""
    yield from commands(values)


def own_commands(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines on how to use an export."""
    name = values["name"]
    scans = values["contract"].get("predicts", "voxels") != "voxels"
    yield "Predict every scan of a folder:" if scans else "Segment every scan of a folder, each on its own grid:"
    yield ""
    yield f"    python -m lightning_atlas predict --weights {name} --input SCANS --output RESULTS"
    yield ""
    yield "Train a network of your own from it, with a recipe whose network is the one in `atlas.json`:"
    yield ""
    yield f"    python -m lightning_atlas fit RECIPE --model.weights {name} --model.contract adopt"
    yield ""
    yield "See what it is, and whether it fits a recipe:"
    yield ""
    yield f"    python -m lightning_atlas inspect {name} --config RECIPE"


def _made(values: Mapping[str, Any]) -> Iterator[str]:
    yield "## How it was made"
    yield ""
    training, source = values["training"] or {}, values["source"]
    if training.get("steps") is not None:
        yield f"{training['steps']:,} steps of training, {training['epochs']} epochs."
    if source:
        yield f"Started from {source['name']} (sha256 {source['sha256']}), licence: {source['licence'] or UNKNOWN}."
    else:
        yield "Started from random weights."
    yield ""
    for key, text in (values["environment"] or {}).items():
        yield f"- {key}: {text}"


def _rights(values: Mapping[str, Any]) -> Iterator[str]:
    yield "## Licence and citation"
    yield ""
    if values["licence"]:
        yield f"Licence: {values['licence']}."
    else:
        yield "No licence was stated: without the maker's permission nobody may use, change or pass on these weights."
    if values["source"] and values["source"]["licence"]:
        yield "The licence of the weights it started from holds too."
    yield f"Citation: {values['citation'] or UNKNOWN}"


def _intensities(contract: Mapping[str, Any]) -> str | None:
    kind = contract.get("normalization")
    window, target = _joined(contract.get("window"), " to "), _joined(contract.get("range"), " to ")
    if kind == "percentiles":
        return f"percentiles {window} of the scan, taken to {target}"
    if kind in ("z-score", "z-score of nonzero"):
        return "mean 0, standard deviation 1" + (" of what is not 0" if kind != "z-score" else "")
    return f"{window}, taken to {target}" + (" and cut off there" if kind == "window" else "") if kind else None


def _joined(numbers: Any, between: str, unit: str = "") -> str | None:
    return between.join(f"{each:g}" for each in numbers) + unit if numbers else None
