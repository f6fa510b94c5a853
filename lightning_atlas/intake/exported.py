"""Weights to hand on: a folder with the tensors, all that is known of them, and a card in plain words.

The folder carries a number for its format. A reader of a later version reads all earlier ones.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_atlas.contract import Contract
from lightning_atlas.intake.model_card import model_card
from lightning_atlas.intake.weights import SourceWeights, read_file, write_weights
from lightning_atlas.intake.zoo import build_network
from lightning_atlas.networks.base import Network
from lightning_atlas.networks.foreign import as_network

FORMAT = 1
WEIGHTS, CARD, README = "weights.safetensors", "atlas.json", "README.md"
FACTS = ("task", "preprocessing", "training", "metrics", "environment", "licence", "citation", "source")
"""What an export says besides its tensors, its network and its contract; each may be `None`: not known."""
KEYS = {"format", "lightning_atlas", "name", "weights", "network", "contract", "classes", *FACTS}
OURS, MONAI = "lightning_atlas.networks", "monai.networks.nets"
PARTS = ("torchio", "lightning_atlas")
"""From where the transforms of an export may come."""


def is_export(folder: Path) -> bool:
    """Tell whether a folder is an export, or what is left of one."""
    return (folder / CARD).is_file() or (folder / WEIGHTS).is_file()


def read_card(folder: Path) -> dict[str, Any]:
    """Return what an export says of itself, without its tensors.

    Raises:
        ValueError: The card is missing, damaged, or of a format that this version does not know.
    """
    path = folder / CARD
    if not path.is_file():
        raise ValueError(f"{folder} is no whole export: {CARD} is missing; copy the folder again, whole")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        number = values["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy the folder again") from error
    if not isinstance(number, int) or not 1 <= number <= FORMAT:
        raise ValueError(
            f"{path} has format {number}, and this version of lightning_atlas reads formats 1 to {FORMAT}: install the "
            f"version that wrote it ({values.get('lightning_atlas', 'not stated')}) or a later one"
        )
    if missing := sorted(KEYS - set(values)):
        raise ValueError(f"{path} lacks {', '.join(missing)}: copy the folder again")
    return values


def read_export(folder: Path) -> SourceWeights:
    """Read the tensors of an export with their contract, their network and their card.

    Raises:
        ValueError: A file is missing, damaged, or not the one that the card describes.
    """
    values, path = read_card(folder), folder / WEIGHTS
    if not path.is_file():
        raise ValueError(
            f"{folder} is no whole export: {WEIGHTS} is missing; copy the folder again, with all its files"
        )
    source, expected = read_file(path), values["weights"]["sha256"]
    if source.sha256 != expected:
        raise ValueError(
            f"{path} is not the file that {CARD} describes: its sha256 is {source.sha256}, expected {expected}; "
            "copy both again from one export"
        )
    try:
        contract = Contract.from_dict(values["contract"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CARD}: its contract cannot be read: {error}") from error
    return replace(source, contract=contract, network=values["network"], card=values, origin=str(folder))


def write_export(
    folder: Path,
    weights: nn.Module | Mapping[str, Tensor],
    contract: Contract,
    network: Mapping[str, Any],
    facts: Mapping[str, Any],
    half: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write an export in one go: a run that is killed leaves no half folder.

    Args:
        folder: Gets the three files; an export that is there is replaced only if `overwrite` says so.
        weights: The network, or its tensors by name.
        contract: What they expect of an image.
        network: `class_path` and `init_args`, as in a recipe.
        facts: The values of `FACTS`, in plain numbers, texts, lists and dicts.
        half: Store floating-point tensors in 16 bits.
        overwrite: Replace an export that is there.

    Returns:
        What was written as the card.

    Raises:
        ValueError: The folder is there, or a tensor is not finite in the precision asked for.
    """
    tensors = dict(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    with written_aside(folder, overwrite) as aside:
        path = aside / WEIGHTS
        write_weights(path, tensors, contract, {"name": folder.name, "network": dict(network)}, half)
        values = {
            "format": FORMAT,
            "lightning_atlas": import_module("lightning_atlas").__version__,
            "name": folder.name,
            "weights": {"file": WEIGHTS, **described(path)},
            "network": dict(network),
            "contract": contract.to_dict(),
            "classes": list(contract.classes),
            **{key: facts[key] for key in FACTS},
        }
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        (aside / CARD).write_text(text + "\n", encoding="utf-8")
        (aside / README).write_text(model_card(values), encoding="utf-8")
    return values


@contextmanager
def written_aside(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder` when the block ends well, and goes away otherwise.

    Raises:
        ValueError: `folder` is there, and is not to be replaced or is more than an export.
    """
    folder = folder.absolute()
    _check_free(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("part", "old"))
    aside.mkdir()
    try:
        yield aside
        if folder.exists():
            folder.rename(old)
        try:
            aside.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


BUNDLE = ("configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md", "LICENSE")
WRITTEN = {WEIGHTS, CARD, README, *BUNDLE}
"""All files of an export and of a bundle: nothing else is ever replaced."""


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; --output takes a folder to make")
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    if foreign := [name for name in there if name not in WRITTEN]:
        raise ValueError(f"{folder} holds files of no export ({', '.join(foreign[:3])}): take another --output")
    if there and not overwrite:
        raise ValueError(f"{folder} is there already: take another --output, or say --overwrite")


def described(path: Path) -> dict[str, Any]:
    """Return what a card says of a file of weights, as it lies on the disk."""
    source = read_file(path)
    return {
        "sha256": source.sha256,
        "size_bytes": path.stat().st_size,
        "tensors": len(source.tensors),
        "parameters": sum(each.numel() for each in source.tensors.values()),
        "precision": precision(source.tensors),
    }


def precision(tensors: Mapping[str, Tensor]) -> str:
    """Name the precisions of the numbers, the most frequent first."""
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + tensor.numel()
    return ", ".join(sorted(counts, key=lambda name: -counts[name]))


def public_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return `class_path` and `init_args` of a network, with ours under `lightning_atlas.networks`, its parts too."""
    path = str(spec.get("class_path"))
    name = path.rpartition(".")[2]
    if path.startswith("lightning_atlas.") and hasattr(import_module(OURS), name):
        path = f"{OURS}.{name}"
    arguments = (spec.get("init_args") or {}).items()
    return {
        "class_path": path,
        "init_args": {key: public_spec(each) if _is_spec(each) else each for key, each in arguments},
    }


def _is_spec(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def check_network(spec: Mapping[str, Any], base: type = Network) -> None:
    """Refuse a network whose code would come from elsewhere than this library or MONAI.

    Args:
        spec: As `public_spec` returns it.
        base: What a class of ours has to be; of parts of a network anything that `lightning_atlas.networks` names.

    Raises:
        ValueError: Names the class.
    """
    wrapped = spec.get("class_path") == f"{OURS}.as_network"
    inner = spec["init_args"]["network"] if wrapped else spec
    path, home = str(inner.get("class_path")), MONAI if wrapped else OURS
    found = getattr(import_module(home), path.rpartition(".")[2], None) if path.startswith(f"{home}.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module if wrapped else base)):
        raise ValueError(
            f"{path} is no network of lightning_atlas.networks or monai.networks.nets, and other code is not run for "
            "weights that somebody handed on: name it in model.init_args.network of a recipe of your own"
        )
    for value in (inner.get("init_args") or {}).values():
        if _is_spec(value):
            check_network(value, object)


def build(spec: Mapping[str, Any], outputs: int | None = None) -> Network:
    """Build a network of this library, or of MONAI as `as_network` wraps it, from `class_path` and `init_args`.

    Args:
        spec: As `public_spec` returns it.
        outputs: Of its head; as the arguments say if not given.

    Raises:
        ValueError: The class is of neither, or does not take these arguments.
    """
    check_network(spec)
    try:
        if spec["class_path"] == f"{OURS}.as_network":
            arguments = dict(spec["init_args"])
            inner = arguments.pop("network")
            name = inner["class_path"].rpartition(".")[2]
            network = as_network(getattr(import_module(MONAI), name)(**(inner.get("init_args") or {})), **arguments)
        else:
            network = build_network(spec)
    except TypeError as error:
        raise ValueError(f"{spec['class_path']} does not take these arguments: {error}") from error
    if outputs is not None:
        network.resize(outputs)
    return network


def check_transforms(specs: Any) -> None:
    """Refuse preprocessing that would run other code than TorchIO's transforms and this library's.

    Raises:
        ValueError: Names the class, or the text that names one.
    """
    if isinstance(specs, Mapping):
        path = specs.get("class_path")
        known = path is None or (str(path).partition(".")[0] in PARTS and not str(path).endswith("Lambda"))
        if not known:
            raise ValueError(f"preprocessing: {path} is no transform of torchio, and other code is not run for weights")
        for key, value in specs.items():
            if key != "class_path":
                check_transforms(value)
    elif isinstance(specs, list | tuple):
        for each in specs:
            check_transforms(each)
    elif isinstance(specs, str) and "." in specs.strip("."):
        raise ValueError(f"preprocessing: {specs} could name code or a file, and weights may bring neither")
