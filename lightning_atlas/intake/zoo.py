"""Published weights as data: one JSON entry each, beside the file or with the address where it is."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_atlas.contract import Contract
from lightning_atlas.intake.key_rules import KeyRules, Shapes, best_fit
from lightning_atlas.intake.weights import read_file, write_weights
from lightning_atlas.networks.base import Network

ZOO = Path(__file__).parent / "zoo"
"""Where the entries lie, and the weights that are shipped with the library."""
NETWORKS = "lightning_atlas.networks."


@dataclass(frozen=True)
class ZooEntry:
    """One set of published weights. `None`, or an empty text, is what is not known.

    Args:
        name: By which a recipe calls it.
        path: The file with the tensors, or the folder of results; where it is once it was fetched.
        sha256: Of the file that is fetched.
        size_bytes: Of that file.
        network: `class_path` and `init_args` of the network that takes all of it, as in a recipe; `None` where the
            folder of results says which.
        contract: What the weights expect of an image.
        licence: Of the weights (an SPDX name where there is one, then a comma and the rest).
        origin: What they were trained on and by which recipe.
        card: What they are and what they are not.
        url: Where the file is; `None` for what is shipped.
        sha256_prefix: The first digits, where only these are known.
        head: What its outputs are: `softmax` with background, `sigmoid`, or `none` where they are of no use to others.
        rules: How its names become those of the network.
        fills: Beginnings of the network's names that it fills; empty for all but perhaps the head.
        task: How it was used: `window` and `threshold` of the task, as in a recipe.
        citation: What to cite.
        sources: Where the facts of this entry are from.
        doubts: What its user should know: contradictions, guesses, what could not be checked.
    """

    name: str
    path: Path
    sha256: str | None
    size_bytes: int | None
    network: dict[str, Any] | None
    contract: Contract
    licence: str
    origin: str
    card: str
    url: str | None = None
    sha256_prefix: str = ""
    head: Literal["softmax", "sigmoid", "none"] = "softmax"
    rules: KeyRules = field(default_factory=KeyRules)
    fills: tuple[str, ...] = ()
    task: dict[str, Any] | None = None
    citation: str = ""
    sources: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def build(self) -> Network:
        """Return the network, freshly initialised.

        Raises:
            ValueError: Only the folder of results says which network it is.
        """
        if self.network is None:
            raise ValueError(f"{self.name}: the network stands in the plans of its folder of results; fetch it first")
        return build_network(self.network)

    @property
    def by_browser(self) -> bool:
        """Whether the address is a page that hands the file to people alone."""
        return (self.url or "").startswith("https://drive.google.com/")

    @property
    def hash(self) -> str | None:
        """What the file's hash must begin with."""
        return self.sha256 or self.sha256_prefix or None


KEYS = {each.name for each in fields(ZooEntry)} - {"name", "path"} | {"file"}
NEEDED = {"file"} | {
    each.name
    for each in fields(ZooEntry)
    if each.default is MISSING and each.default_factory is MISSING and each.name not in ("name", "path")
}


def weights_root() -> Path:
    """Return where fetched weights lie: `LIGHTNING_ATLAS_WEIGHTS`, or a folder beside the prepared data."""
    if chosen := os.environ.get("LIGHTNING_ATLAS_WEIGHTS"):
        return Path(chosen).expanduser()
    if chosen := os.environ.get("LIGHTNING_ATLAS_CACHE"):
        return Path(chosen) / "weights"
    caches = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "lightning_atlas" / "weights"


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


class Likeness(NamedTuple):
    """How far some tensors look like those of an entry.

    Args:
        name: Of the entry.
        matched: Tensors that its network has, by name and shape, after its rules.
        total: Tensors of the file that its rules keep.
    """

    name: str
    matched: int
    total: int

    def __str__(self) -> str:
        return f"{self.name} ({self.matched} of {self.total} tensors)"


def nearest(tensors: Mapping[str, Tensor], count: int = 3) -> list[Likeness]:
    """Return the entries that the tensors look like by names and shapes, the most alike first; half must match."""
    found = []
    for entry in entries().values():
        if entry.network is None:
            continue
        shaped = {name: torch.empty(each.shape, device="meta") for name, each in tensors.items()}
        kept, _ = entry.rules.apply(shaped)
        matched = best_fit({name: each.shape for name, each in kept.items()}, _signature(entry.name)).matched
        if matched and 2 * matched >= len(kept):
            found.append(Likeness(entry.name, matched, len(kept)))
    return sorted(found, key=lambda each: (-each.matched, each.total))[:count]


@cache
def _signature(name: str) -> Shapes:
    with without_memory():
        return _shapes(entries()[name].build())


class _NumbersOnCpu(TorchFunctionMode):
    """Keeps `linspace` real where all other tensors are not: MONAI's Swin transformer reads its values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "cpu"} if func is torch.linspace else {}))


@contextmanager
def without_memory() -> Iterator[None]:
    """Build networks on the meta device meanwhile: names and shapes, no numbers, however large they are."""
    with torch.device("meta"), _NumbersOnCpu():
        yield


def build_network(spec: Mapping[str, Any]) -> Network:
    """Build a network of this library from `class_path` and `init_args`; arguments may be parts in the same form.

    Raises:
        ValueError: The class is not one of `lightning_atlas.networks`.
    """
    return _build_part(spec, Network)


def _build_part(spec: Mapping[str, Any], base: type) -> Any:
    path = str(spec.get("class_path"))
    name = path.removeprefix(NETWORKS)
    kind = getattr(import_module(NETWORKS.rstrip(".")), name, None) if path.startswith(NETWORKS) else None
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ValueError(f"published weights name a class of lightning_atlas.networks, and found {path}")
    arguments = (spec.get("init_args") or {}).items()
    hints = get_type_hints(kind.__init__)
    return kind(**{key: _argument(each, hints.get(key)) for key, each in arguments})


def _argument(value: Any, hint: Any) -> Any:
    """Return an argument of a network: another network or part, settings such as a depth policy, or plain values."""
    if is_spec(value):
        return _build_part(value, object)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return hint(**{key: _tuples(_numbered(each)) for key, each in value.items()})
    return _tuples(value)


def _numbered(value: Any) -> Any:
    """Return a table with the numbers as keys that JSON has as texts."""
    return {int(key): each for key, each in value.items()} if isinstance(value, Mapping) else value


def settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network and of the networks among its arguments, by name."""
    found: dict[str, Any] = {}
    for key, each in (spec.get("init_args") or {}).items():
        found |= settings(each) if is_spec(each) else {key: each}
    return found


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


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def is_spec(value: Any) -> bool:
    """Tell whether a value is an object in the form of a recipe: `class_path`, and perhaps `init_args`."""
    return isinstance(value, Mapping) and "class_path" in value


def _read_entry(path: Path) -> ZooEntry:
    values = json.loads(path.read_text(encoding="utf-8"))
    if odd := sorted(set(values) - KEYS | NEEDED - set(values)):
        raise ValueError(
            f"{path}: an entry has the keys {', '.join(sorted(NEEDED))}, and may have "
            f"{', '.join(sorted(KEYS - NEEDED))}; missing or unknown: {', '.join(odd)}"
        )
    file = Path(values.pop("file"))
    folder = weights_root() if values.get("url") else path.parent
    try:
        values["contract"] = Contract.from_dict(values["contract"])
        values["rules"] = KeyRules.from_dict(values.get("rules", {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    lists = {key: tuple(values.get(key, ())) for key in ("fills", "sources", "doubts")}
    # An archive becomes the folder that is in it.
    file = file.with_suffix("") if file.suffix == ".zip" else file
    return ZooEntry(**values | lists, name=path.stem, path=folder / file)
