"""Weights on disk: read so that no file can run code, written with their contract and card."""

import hashlib
import json
import os
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_atlas.contract import Contract
from lightning_atlas.intake.keras import read_keras
from lightning_atlas.intake.nests import NESTS, other_sets, state_dict, state_dict_at, twins
from lightning_atlas.networks.low_rank import merged

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".model", ".h5")
HARMLESS: list[Any] = [
    Namespace,
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64, np.bool_))),
]
"""What checkpoints store beside their tensors and what runs no code when it is read: the arguments of a script, and the
single numbers of NumPy that nnU-Net and its children write."""
OWN_KEY, OWN_PREFIX = "lightning_atlas", "network."
"""What a checkpoint of this library carries, and where its network lies among its tensors."""


@dataclass(frozen=True)
class SourceWeights:
    """Tensors as they lie in a file, and what is known about them.

    Args:
        tensors: By the file's own names and in its own precision.
        contract: What they expect of an image; `None` where the file does not say.
        origin: The file.
        sha256: Of the whole file.
        network: `class_path` and `init_args` of the network that they fit, where that is known.
        card: What else is known of them, as published or exported.
        fills: Beginnings of the network's names that they are meant to fill; empty for all but the head.
        skipped: Names in the file that no network takes, and why.
        notes: What else its user should know, such as other weights in the same file.
    """

    tensors: dict[str, Tensor]
    contract: Contract | None
    origin: str
    sha256: str
    network: dict[str, Any] | None = None
    card: dict[str, Any] = field(default_factory=dict)
    fills: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Content(NamedTuple):
    """What a file holds: tensors by its own names, what is said of them, other places of the same, and what to know."""

    tensors: dict[str, Tensor]
    contract: Contract | None = None
    card: Mapping[str, Any] = {}
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_file(path: Path, sha256: str | None = None, nest: str | None = None) -> SourceWeights:
    """Read the tensors and the contract of a weights file without running anything in it.

    Args:
        path: `.safetensors`, a `.pt`, `.pth`, `.ckpt` or `.model` that holds a state dict, bare or nested, or an `.h5`
            of Keras.
        sha256: What the file's hash must be, or its first digits; checked before the file is parsed.
        nest: Where in the file the weights are, such as `model_ema`, or how their names begin; `None` takes the usual.

    Raises:
        ValueError: Another kind of file, another hash, a damaged file, more than tensors in it, none, or one that is
            not finite.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no weights file: expected one that ends in {', '.join(SUFFIXES)}")
    check_is_binary(path)
    found = file_sha256(path)
    if sha256 is not None and not found.startswith(sha256):
        raise ValueError(f"{path} is not the published file: its sha256 is {found}, expected {sha256}; fetch it again")
    read = {".safetensors": _read_safetensors, ".h5": _read_keras}.get(path.suffix, _read_checkpoint)
    tensors, contract, card, others, told = read(path, nest)
    try:
        tensors = merged(tensors)  # a network trained by LoRA has its weights in parts
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _check_finite(tensors, path)
    origin = str(path) if nest is None else f"{path}#{nest}"
    notes = tuple(f"{path.name} has such weights also under {each}; to take those: {path}#{each}" for each in others)
    return SourceWeights(tensors, contract, origin, found, card.get("network"), dict(card), notes=(*notes, *told))


def check_is_binary(path: Path) -> None:
    """Refuse what a browser or git leaves in the place of a large file.

    Raises:
        ValueError: The file is empty, a web page, or a pointer of git's large file storage.
    """
    with path.open("rb") as file:
        start = file.read(1024).lstrip().lower()
    if not start:
        raise ValueError(f"{path} is damaged: it is empty; fetch it again")
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise ValueError(
            f"{path} is a web page, not weights: the page about the file was saved in its place. Save what its "
            "download button gives; on Hugging Face that address has /resolve/ where the page's has /blob/"
        )
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a pointer of git's large file storage, not weights: run `git lfs pull` in its folder"
        )


def write_weights(
    path: Path,
    network: nn.Module | Mapping[str, Tensor],
    contract: Contract,
    card: Mapping[str, Any],
    half: bool = False,
) -> None:
    """Write a network's tensors with contract and card as safetensors; `read_file` returns them.

    Args:
        path: Ends in `.safetensors`; replaced in one go, so a killed run leaves no half file.
        network: Its whole state dict is written, on whatever device it lies; or tensors by name. A tensor of several
            names is written under the first.
        contract: What the network expects of an image.
        card: Plain values: what the weights are, where they come from, their licence.
        half: Store floating-point tensors in 16 bits.

    Raises:
        ValueError: Another suffix, or a tensor that is not finite in the precision asked for.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are written as .safetensors")
    given = network.state_dict() if isinstance(network, nn.Module) else network
    tensors = {name: tensor.detach().cpu() for name, tensor in _first_names(given).items()}
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    _check_finite(tensors, path)
    # One memory of its own for each: the format refuses tensors that share theirs.
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    aside = path.with_name(f".{path.name}.part")
    save_file(tensors, aside, metadata={"format": "pt", "contract": contract.to_json(), "card": json.dumps(card)})
    umask = os.umask(0)
    os.umask(umask)
    aside.chmod(0o666 & ~umask)  # safetensors writes for the owner alone
    aside.replace(path)


def _first_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    memory = {name: (each.data_ptr(), each.shape, each.stride()) for name, each in tensors.items()}
    first = {place: name for name, place in reversed(memory.items())}
    return {name: each for name, each in tensors.items() if each.numel() == 0 or first[memory[name]] == name}


def read_card(path: Path) -> dict[str, Any]:
    """Return the card in the header of a file that `write_weights` wrote."""
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("card", "{}"))


def file_sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path, nest: str | None = None) -> Content:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    contract = _contract(header["contract"], path) if "contract" in header else None
    others = tuple(each for each in twins(tensors) if each != nest)
    return Content(_nested(tensors, nest, path), contract, _card(header.get("card", "{}"), path), others)


def _read_keras(path: Path, nest: str | None = None) -> Content:
    return Content(_nested(read_keras(path), nest, path))


def _nested(content: Mapping[Any, Any], nest: str | None, path: Path) -> dict[str, Tensor]:
    if nest is None:
        return state_dict(content)
    try:
        return state_dict_at(content, nest)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_checkpoint(path: Path, nest: str | None = None) -> Content:
    content = _load_safely(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of tensors (a state dict)")
    tensors = _nested(content, nest, path)
    if not tensors:
        keys = ", ".join(str(key) for key in list(content)[:8]) or "nothing"
        raise ValueError(f"{path} holds no tensors at its top level nor under {', '.join(NESTS)}; it has {keys}")
    others = tuple(each for each in (*other_sets(content, tensors), *twins(state_dict(content))) if each != nest)
    own = content.get(OWN_KEY)
    if not isinstance(own, Mapping):
        return Content(tensors, others=others)
    ours = {name.removeprefix(OWN_PREFIX): each for name, each in tensors.items() if name.startswith(OWN_PREFIX)}
    if not ours and nest is not None:
        ours = tensors
    if not ours:
        raise ValueError(f"{path} says that lightning_atlas wrote it, but no tensor's name starts with {OWN_PREFIX}")
    contract = _contract(own["contract"], path) if "contract" in own else None
    return Content(ours, contract, others=others, notes=tuple(own.get("notes", ())))


def _load_safely(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise ValueError(_explain(path, error)) from error


def _explain(path: Path, error: Exception) -> str:
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript program; expected a state dict: torch.save(module.state_dict(), FILE)"
    blocked = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, UnpicklingError) else None
    if blocked is None:
        return f"{path} is damaged or no file of tensors (the safe reader stopped with {type(error).__name__})"
    return (
        f"{path} holds more than tensors: {blocked[1]} was blocked, since such files can run code when they are read. "
        f'If you trust its origin, keep its tensors only, once, and use the new file: python -c "import torch; '
        f"c = torch.load('{path.name}', weights_only=False); torch.save(c.get('state_dict', c), 'tensors.pt')\"\n"
        "Of published weights, which are known by their hash, give the new file as NAME=tensors.pt (`weights list`)"
    )


def _card(text: str, path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: its card cannot be read: {error}") from error
    return values if isinstance(values, Mapping) else {}


def _contract(values: Any, path: Path) -> Contract:
    try:
        return Contract.from_dict(json.loads(values) if isinstance(values, str) else values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its contract cannot be read: {error}") from error


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(f"{path}: not all numbers are finite in {', '.join(bad[:3])}{more}")
