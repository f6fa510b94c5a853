"""Published weights as data: one JSON entry beside each file."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_atlas.adaptation.weights import read_file, write_weights
from lightning_atlas.contract import Contract
from lightning_atlas.networks.base import Network

ZOO = Path(__file__).parent / "zoo"
"""Where the weights lie that are shipped with the library."""
NETWORKS = "lightning_atlas.networks."


@dataclass(frozen=True)
class ZooEntry:
    """One set of published weights.

    Args:
        name: By which a recipe calls it.
        path: The file with the tensors.
        sha256: Of that file.
        size_bytes: Of that file.
        network: `class_path` and `init_args` of the network, as in a recipe.
        contract: What the weights expect of an image.
        licence: Of the weights (an SPDX name where there is one).
        origin: What they were trained on and by which recipe, with the citation.
        card: What they are and what they are not.
    """

    name: str
    path: Path
    sha256: str
    size_bytes: int
    network: dict[str, Any]
    contract: Contract
    licence: str
    origin: str
    card: str

    def build(self) -> Network:
        """Return the network, freshly initialised."""
        return build_network(self.network)


KEYS = {each.name for each in fields(ZooEntry)} - {"name", "path"} | {"file"}


def entries(folder: Path = ZOO) -> dict[str, ZooEntry]:
    """Return all entries by name.

    Raises:
        ValueError: An entry lacks a key or has an unknown one.
    """
    return {path.stem: _read_entry(path) for path in sorted(folder.glob("*.json"))}


def find(name: str, folder: Path = ZOO) -> ZooEntry:
    """Return the entry of this name.

    Raises:
        ValueError: There is none.
    """
    known = entries(folder)
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:3]
        raise ValueError(f"no weights are published as {name!r}; nearest: {', '.join(near) or 'there are none yet'}")
    return known[name]


def build_network(spec: Mapping[str, Any]) -> Network:
    """Build a network of this library from `class_path` and `init_args`.

    Raises:
        ValueError: The class is not one of `lightning_atlas.networks`.
    """
    path = str(spec.get("class_path"))
    name = path.removeprefix(NETWORKS)
    kind = getattr(import_module(NETWORKS.rstrip(".")), name, None) if path.startswith(NETWORKS) else None
    if not (isinstance(kind, type) and issubclass(kind, Network)):
        raise ValueError(f"published weights name a class of lightning_atlas.networks, and found {path}")
    return kind(**spec.get("init_args", {}))


def write_entry(
    folder: Path, name: str, network: Network, contract: Contract, spec: Mapping[str, Any], card: Mapping[str, str]
) -> ZooEntry:
    """Write a network's weights in half precision and the entry that describes them.

    Args:
        folder: Gets `NAME.safetensors` and `NAME.json`.
        name: By which a recipe will call the weights: lower-case letters, digits and underscores.
        network: With the weights.
        contract: What they expect of an image; it has their classes.
        spec: `class_path` and `init_args` of the network, as in a recipe.
        card: The texts `licence`, `origin` and `card` of the entry.

    Raises:
        ValueError: The name is not one, a text is missing, or the network is not what `spec` builds.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{name!r} is no name for weights: use lower-case letters, digits and underscores")
    if set(card) != {"licence", "origin", "card"}:
        raise ValueError(f"an entry has the texts licence, origin and card, and found {', '.join(card) or 'none'}")
    built, given = _shapes(build_network(spec)), _shapes(network)
    if odd := [key for key in built.keys() | given.keys() if built.get(key) != given.get(key)]:
        raise ValueError(f"{spec['class_path']} with these init_args is another network: {min(odd)} differs")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    write_weights(path, network, contract, {"name": name, "network": dict(spec), **card}, half=True)
    values = {
        "file": path.name,
        "sha256": read_file(path).sha256,
        "size_bytes": path.stat().st_size,
        "network": dict(spec),
        "contract": contract.to_dict(),
        **card,
    }
    entry = path.with_suffix(".json")
    entry.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return _read_entry(entry)


def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _read_entry(path: Path) -> ZooEntry:
    values = json.loads(path.read_text(encoding="utf-8"))
    if set(values) != KEYS:
        odd = ", ".join(sorted(set(values) ^ KEYS))
        raise ValueError(f"{path}: an entry has the keys {', '.join(sorted(KEYS))}; missing or unknown: {odd}")
    contract = Contract.from_dict(values.pop("contract"))
    return ZooEntry(name=path.stem, path=path.parent / values.pop("file"), contract=contract, **values)
