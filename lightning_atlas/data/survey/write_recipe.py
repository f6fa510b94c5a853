"""Writes a complete recipe for a dataset, each guessed line with its reason."""

import glob
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import torchio

from lightning_atlas.contract import PREPROCESSED, Contract, differences
from lightning_atlas.data.adoption import expected_of, steps_for
from lightning_atlas.data.labels.classes import Classes, ClassMap, match_classes
from lightning_atlas.data.survey.fingerprint import Fingerprint
from lightning_atlas.data.survey.fingerprint_case import CaseFingerprint
from lightning_atlas.data.survey.proposal import Proposal, costs, counted, kinds, plane_split_axis, training_cases

WIDTH = 120
DEFAULT_NETWORK = {"class_path": "UNet", "init_args": {"features": [16, 32, 64, 96]}}
VALIDATIONS = 10
"""In a run; each takes all validation scans."""
MOST_COSTS = 6
PLAIN = re.compile(r"[A-Za-z_][\w.-]*")
YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    Args:
        weights: A name of published weights or a file.
        contract: What they expect of an image.
        network: `class_path` and `init_args` of the network that they are of.
    """

    weights: str
    contract: Contract
    network: Mapping[str, Any]


def write_recipe(
    path: Path,
    manifest: Path,
    fingerprint: Fingerprint,
    proposal: Proposal,
    classes: Mapping[str, Sequence[str]] | None = None,
    start: Start | None = None,
) -> None:
    """Write a recipe that `fit` takes as it is.

    Args:
        path: The recipe.
        manifest: The table of the scans, as the recipe is to name it.
        fingerprint: Of these scans.
        proposal: The numbers; with `start`, made for its contract.
        classes: Class -> names of the dataset; by default each name that is drawn in a training scan is a class.
        start: The weights; from scratch without.

    Raises:
        ValueError: There is no class to learn, or `classes` name what nobody drew.
    """
    chosen, left_out = (
        ({name: list(words) for name, words in classes.items()}, []) if classes else own_classes(fingerprint)
    )
    if not chosen:
        raise ValueError(f"{manifest}: nothing is drawn in any training scan, so there is no class to learn")
    match_classes(_datasets(fingerprint.cases), chosen)
    lines = [
        *_header(path, manifest, fingerprint, chosen, start),
        *_model(
            proposal, start, len(fingerprint.cases[0].channels), _meant(proposal.contract, start, kinds(fingerprint))
        ),
        *_data(manifest, fingerprint, proposal, chosen, left_out),
        *_trainer(proposal),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def own_classes(fingerprint: Fingerprint) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names that training scans have, each a class, and which names are left out and why.

    A voxel may be in one class only, but for what lies in another by anatomy; of names that share something the one
    that holds less is taken.
    """
    cases = training_cases(fingerprint)
    atoms = match_classes(_datasets(fingerprint.cases), Classes(exclusive=False)).atoms
    present = {name for case in cases for name, each in case.structures.items() if each.volume_ml > 0}
    nested = _nested(atoms)
    overlaps = {frozenset(pair) for case in cases for pair in case.overlaps} - nested
    chosen: list[str] = []
    reasons: list[str] = []
    for name in sorted(fingerprint.names, key=lambda name: len(atoms[name])):
        shared = [each for each in chosen if atoms[each] & atoms[name]]
        clash = [each for each in chosen if {each, name} in overlaps]
        if name not in present:
            reasons.append(f"{name}, which no training scan has")
        elif shared:
            some = ", ".join(shared[:3]) + (" and others" if len(shared) > 3 else "")
            reasons.append(f"{name}, of which {some} are parts")
        elif clash:
            reasons.append(f"{name}, which overlaps {', '.join(clash)}: each voxel may be in one class")
        else:
            chosen.append(name)
    return {name: [glob.escape(name)] for name in fingerprint.names if name in chosen}, reasons


def _datasets(cases: Iterable[CaseFingerprint]) -> list[tuple[tuple[str, ...], str | None]]:
    """Return the names and the vocabulary of each kind of case, as `match_classes` takes them."""
    return list(dict.fromkeys((tuple(case.structures), case.vocabulary) for case in cases if case.structures))


def _nested(atoms: dict[str, frozenset[str]]) -> set[frozenset[str]]:
    """Return the pairs of names of which one lies in the other by anatomy, so that it is taken out of it."""
    names = list(atoms)
    return {frozenset((names[outer], names[inner])) for outer, inner in ClassMap(atoms).contained}


def _header(
    path: Path, manifest: Path, fingerprint: Fingerprint, classes: Mapping[str, Sequence[str]], start: Start | None
) -> list[str]:
    told = fingerprint.summary
    scans = f"{counted(told['scans'], 'scan')} of {counted(told['patients'], 'patient')}"
    kinds = ", ".join(f"{name} {n}" for name, n in told["modalities"].items())
    origin = f"from the weights {start.weights}" if start else "from scratch"
    taken = costs(fingerprint, start.contract)[:MOST_COSTS] if start else []
    return [
        f"# {counted(len(classes), 'structure')} in {scans} ({kinds}), {origin}; guessed lines say why.",
        f"# On disk: the scans that {manifest.as_posix()} names; paths are seen from where the command runs.",
        f"# Run:  python -m lightning_atlas prepare {_shell(manifest)}",
        f"#       python -m lightning_atlas fit {_shell(path)}",
        "# Result: not yet run",
        *(["# What it costs these scans to be what the weights expect:"] if taken else []),
        *(f"# - {cost}" for cost in taken),
    ]


def _meant(given: Contract, start: Start | None, kind: str) -> dict[str, str]:
    """Return what the data have otherwise than the weights expect, with the reason."""
    found = {each.key: each for each in differences(start.contract, given)} if start else {}
    reasons = {key: str(each).partition(": ")[2] for key, each in found.items()}
    if "modality" in found:
        reasons["modality"] = f"{found['modality'].weights} weights on {kind}"
    if "normalization" in found:
        reasons["normalization"] = f"the weights' {found['normalization'].weights} does not fit {kind}"
        reasons |= {"window": "as above"} if "window" in found else {}
    return reasons


def _adopts(given: Contract, start: Start) -> bool:
    """Tell whether the preprocessing of the recipe is what adopting would make of it."""
    expected = expected_of(start.contract, given.modality)
    return not any(each.key in PREPROCESSED for each in differences(expected, given))


def _model(proposal: Proposal, start: Start | None, channels: int, meant: Mapping[str, str]) -> list[str]:
    network = start.network if start else DEFAULT_NETWORK
    path = str(network["class_path"])
    kind = path.rpartition(".")[2] if path.startswith("lightning_atlas.networks.") else path
    settings = {key: value for key, value in network.get("init_args", {}).items() if key != "out_channels"}
    settings |= {"in_channels": channels} if channels > 1 else {}
    window = _flow("SlidingWindow", {"patch": list(proposal.patch), "overlap": 0.25})
    lines = [
        "model:",
        "  class_path: TransferLearning",
        "  init_args:",
        *_said(f"    network: {_flow(kind, settings)}", "the network of the weights" if start else "small and quick"),
        "    task:",
        "      class_path: Segmentation",
        *_said(f"      init_args: {{window: {window}}}", "what training sees at a time"),
        *_said("    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 2.5e-3}}", "as in the packaged recipes"),
        "    schedule: {class_path: CosineSchedule, init_args: {warmup: 0.05}}",
        f"    weights: {_word(start.weights) if start else 'null'}",
    ]
    if start and _adopts(proposal.contract, start):
        lines += _said("    contract: adopt", "other weights bring their own preprocessing")
    if meant:
        lines.append("    # What the scans have otherwise than the weights expect, and why that is meant:")
        lines += [line for key, why in meant.items() for line in _comment("    ", f"- {key}: {why}")]
        lines.append(f"    allow: [{', '.join(meant)}]")
    if proposal.adaptation:
        decay = {"decay": 0.75} if proposal.adaptation == "LayerWiseDecay" else {}
        moves = f"    adaptation: [{_flow(proposal.adaptation, decay)}]"
        lines += _said(moves, proposal.reasons["adaptation"])
    return lines


def _data(
    manifest: Path,
    fingerprint: Fingerprint,
    proposal: Proposal,
    classes: Mapping[str, Sequence[str]],
    left_out: Sequence[str],
) -> list[str]:
    patches = _flow("Patches", {"size": list(proposal.patch), "per_epoch": proposal.per_epoch})
    reasons = proposal.reasons
    return [
        "data:",
        "  class_path: ScanDataModule",
        "  init_args:",
        f"    source: {_flow('Manifest', {'path': manifest.as_posix()})}",
        *_splits(fingerprint),
        "    classes:",
        *(f"      {_word(name)}: [{', '.join(map(_word, words))}]" for name, words in classes.items()),
        *(line for reason in left_out for line in _comment("      ", f"Left out: {reason}.")),
        "    preprocess:",
        *(line for step in _preprocess(proposal) for line in step),
        *_augment(proposal),
        *_said(f"    patches: {patches}", f"{reasons['patch']}; {reasons['per_epoch']}"),
        *_said(f"    batch_size: {proposal.batch_size}", reasons["batch_size"]),
    ]


def _splits(fingerprint: Fingerprint) -> list[str]:
    if axis := plane_split_axis(fingerprint):
        planes = _flow("PlaneSplit", {"axis": axis, "val_share": 0.2})
        return _said(f"    splits: {planes}", "one scan: some planes validate, which says nothing about other patients")
    shares = _flow("Splits", {"val_share": 0.2, "test_share": 0.2})
    return _said(f"    splits: {shares}", "by patient, where the manifest has no val or test; none of fewer than three")


def _preprocess(proposal: Proposal) -> list[list[str]]:
    whys = {key: proposal.reasons[key] for key in ("orientation", "spacing_mm", "normalization", "range")}
    made = [
        [_step(name, settings, whys[key]) for name, settings in steps_for(proposal.contract, key)]
        for key in ("orientation", "spacing_mm", "normalization")
    ]
    if len(made[-1]) > 1:  # the window is clipped first, and then taken to the range
        name, settings = steps_for(proposal.contract, "normalization")[-1]
        made[-1][-1] = _step(name, settings, whys["range"])
    return [step for part in made for step in part]


def _augment(proposal: Proposal) -> list[str]:
    scales: Any = 0.15
    degrees: Any = 10
    if proposal.flat_axis:
        kept = "ijk".index(proposal.flat_axis)
        scales = [limit for axis in range(3) for limit in ((1, 1) if axis == kept else (0.85, 1.15))]
        degrees = [limit for axis in range(3) for limit in ((-10, 10) if axis == kept else (0, 0))]
    low, high = proposal.contract.range or (0.0, 1.0)
    affine = {"scales": scales, "degrees": degrees, "translation": 0}
    lines = ["    augment:", *_step("RandomAffine", affine, proposal.reasons["augment"])]
    if proposal.contract.normalization != "z-score" and low >= 0:
        lines += _step("RandomGamma", {"log_gamma": 0.3}, "contrast differs between scanners")
    return [*lines, *_step("RandomNoise", {"std": [0, round(0.05 * (high - low), 6)]}, "up to 5 % of the range")]


def _trainer(proposal: Proposal) -> list[str]:
    between = max(1, proposal.epochs // VALIDATIONS)
    return [
        "trainer:",
        "  accelerator: auto",
        *_said(f"  max_epochs: {proposal.epochs}", proposal.reasons["epochs"]),
        *_said(f"  check_val_every_n_epoch: {between}", f"about {VALIDATIONS} validations in a run"),
        "  gradient_clip_val: 1.0",
        "  enable_model_summary: false",
        "  log_every_n_steps: 10",
    ]


def _said(line: str, reason: str) -> list[str]:
    """Put the reason behind a line, or above it where both are too long for one."""
    whole = f"{line}  # {reason}"
    return [whole] if len(whole) <= WIDTH else [*_comment(line[: len(line) - len(line.lstrip())], reason), line]


def _step(transform: str, settings: Mapping[str, Any], reason: str) -> list[str]:
    path = f"torchio.{transform}" if hasattr(torchio, transform) else transform
    line = f"      - {_flow(path, settings)}"
    if len(line) <= WIDTH:
        return _said(line, reason)
    head = _said(f"      - class_path: {path}", reason)
    return [*head, f"        init_args: {_value(settings)}"]


def _comment(indent: str, text: str) -> list[str]:
    return [f"{indent}# {part}" for part in wrap(text, WIDTH - len(indent) - 2)]


def _flow(class_path: str, settings: Mapping[str, Any] | None = None) -> str:
    return (
        f"{{class_path: {class_path}, init_args: {_value(settings)}}}" if settings else f"{{class_path: {class_path}}}"
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_value(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        return f"{value:.9g}"
    return _word(value) if isinstance(value, str) else json.dumps(value)


def _word(text: str) -> str:
    """Return a string as YAML has it, in quotes where it might be taken for something else."""
    plain = PLAIN.fullmatch(text) and text.lower() not in YAML_WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)


def _shell(path: Path) -> str:
    text = path.as_posix()
    return text if re.fullmatch(r"[\w./:-]+", text) else json.dumps(text, ensure_ascii=False)
