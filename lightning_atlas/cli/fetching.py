"""`weights list`, `weights show NAME`, `weights fetch NAME`: the only place that uses the network."""

import shutil
import textwrap
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.contract import in_words
from lightning_atlas.intake import zoo
from lightning_atlas.intake.weights import check_is_binary, file_sha256
from lightning_atlas.intake.zoo import ZooEntry

USAGE = "write `weights list`, `weights show NAME` or `weights fetch NAME [--output FOLDER]`"
UNKNOWN = "not known"
CHUNK = 2**20
SPARE = 2**26
"""Bytes that a disk must have left after a download."""
Opener = Callable[..., Any]


def main(arguments: Sequence[str]) -> None:
    """Do what `weights list|show NAME|fetch NAME [--output FOLDER]` asks for.

    Raises:
        CommandError: The words are not one of these, there is no such entry, or it could not be fetched.
    """
    match list(arguments):
        case [] | ["list"]:
            print(table(zoo.entries().values()))
        case ["show", name]:
            print(describe(_entry(name)))
        case ["fetch", name]:
            print(fetch(_entry(name)))
        case ["fetch", name, "--output", folder] | ["fetch", "--output", folder, name]:
            print(fetch(_entry(name), Path(folder).expanduser()))
        case _:
            raise CommandError(USAGE)


def table(entries: Iterable[ZooEntry]) -> str:
    """Return one line for each entry: name, network, classes, size, licence, and whether it is here."""
    rows = [("NAME", "NETWORK", "CLASSES", "SIZE", "LICENCE", "HERE")]
    for entry in entries:
        network = "nnU-Net's plans" if entry.network is None else _class_names(entry.network)
        classes = str(len(entry.contract.classes)) if entry.contract.classes else "in it" if not entry.network else "-"
        size = f"{entry.size_bytes / 1e6:,.0f} MB" if entry.size_bytes else UNKNOWN
        here = "shipped" if entry.url is None else "yes" if entry.path.exists() else "no"
        rows.append((entry.name, network, classes, size, entry.licence.partition(",")[0], here))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"fetched files: {zoo.weights_root()}; more on one: lightning-atlas weights show NAME"])


def describe(entry: ZooEntry) -> str:
    """Return everything that is known of an entry; what is not, is said to be so."""
    contract = entry.contract
    facts = {
        "what": entry.card,
        "trained on": entry.origin,
        "network": "in the plans of the folder" if entry.network is None else _spec(entry.network),
        "fills": ", ".join(entry.fills),
        "outputs": {"none": "of no use to other tasks"}.get(entry.head, entry.head),
        "classes": ", ".join(contract.classes) or ("in the folder" if entry.network is None else "none"),
        "expects": "; ".join(
            f"{key} {UNKNOWN if getattr(contract, key) is None else in_words(getattr(contract, key))}"
            for key in ("modality", "orientation", "spacing_mm", "normalization", "window", "range")
        ),
        "mirrored": ", ".join(contract.mirrored_axes) and f"along {', '.join(contract.mirrored_axes)} in training",
        "licence": entry.licence,
        "citation": entry.citation or UNKNOWN,
        "address": entry.url or "shipped with the library",
        "size": f"{entry.size_bytes:,} bytes" if entry.size_bytes else UNKNOWN,
        "sha256": entry.sha256 or (f"{entry.sha256_prefix}... (the rest is not known)" if entry.hash else UNKNOWN),
        "lies": f"{entry.path} ({'here' if entry.path.exists() else 'not here'})",
    }
    lines = [entry.name]
    lines += [_paragraph(key, text) for key, text in facts.items() if text]
    lines += [_paragraph("doubt", text) for text in entry.doubts]
    lines += [_paragraph("from", text) for text in entry.sources]
    return "\n".join(lines)


def fetch(entry: ZooEntry, folder: Path | None = None, opener: Opener | None = None) -> str:
    """Download the file of an entry, check it, and give it its name; an archive becomes the folder that is in it.

    Args:
        entry: Of the zoo.
        folder: Where it goes; the folder of fetched weights by default.
        opener: What opens an address, as `urllib.request.urlopen`; one that knows nothing but https by default.

    Returns:
        A sentence that says what lies where.

    Raises:
        CommandError: There is no address, no network, no space, or what came is not the published file.
    """
    if entry.url is None:
        return f"{entry.name} is shipped with the library: {entry.path}"
    target = (folder or entry.path.parent) / entry.path.name
    if target.exists():
        return f"{entry.name} is here: {target}"
    if entry.by_browser:
        raise CommandError(f"{entry.name} is handed to browsers alone: open {entry.url} and save the file as {target}")
    archive = entry.url.endswith(".zip")
    file = target.with_name(target.name + ".zip") if archive else target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _download(entry, file, opener or _https())
        found = _check(entry, part)
        _unpack(part, target) if archive else part.replace(target)
    except OSError as error:
        raise CommandError(f"{target} could not be written: {error}") from error
    told = "" if entry.hash else f"\nno hash is known for it; this one's sha256 is {found}: note it"
    use = target if folder else entry.name
    return f"{entry.name} is here: {target}{told}\nuse it: --model.weights {use}, or weights: {use} in a recipe"


def _download(entry: ZooEntry, file: Path, opener: Opener) -> Path:
    """Return the whole file aside of its name; what an interrupted connection left is gone on with."""
    part = file.with_name(f".{file.name}.part")
    # Only a hash tells whether two halves belong together.
    have = part.stat().st_size if part.exists() and entry.hash else 0
    if entry.size_bytes and have >= entry.size_bytes:
        return part
    request = urllib.request.Request(entry.url or "", headers={"User-Agent": "lightning-atlas"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with opener(request, timeout=60) as answer:
            _receive(answer, entry, part, have if answer.status == 206 else 0)
    except KeyboardInterrupt:
        part.unlink(missing_ok=True)
        raise
    except urllib.error.HTTPError as error:
        part.unlink(missing_ok=True)
        raise CommandError(
            f"{entry.url} could not be fetched: the server says {error.code} {error.reason}\n"
            "if it stays so, the publishers have moved or locked it: see where it is now, save it by hand\n"
            f"as {file.name} in {file.parent}; its hash is checked when it is read"
        ) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
        raise CommandError(_no_network(entry, file, error)) from error
    return part


def _receive(answer: Any, entry: ZooEntry, part: Path, have: int) -> None:
    """Write what comes to the end of the `have` bytes that are there."""
    length = answer.headers.get("Content-Length")
    left = int(length) if length else max(0, (entry.size_bytes or 0) - have)
    unpacked = 2 * (left + have) if (entry.url or "").endswith(".zip") else 0
    free = shutil.disk_usage(part.parent).free
    if free < left + unpacked + SPARE:
        raise CommandError(
            f"{part.parent} has {free / 1e6:,.0f} MB left, and {entry.name} needs {(left + unpacked) / 1e6:,.0f} MB: "
            f"make room, or choose another place: weights fetch {entry.name} --output FOLDER"
        )
    bar = tqdm(total=left + have or None, initial=have, unit="B", unit_scale=True, desc=entry.name, disable=None)
    with part.open("ab" if have else "wb") as file, bar:
        while block := answer.read(CHUNK):
            file.write(block)
            bar.update(len(block))
    if length and part.stat().st_size < int(length) + have:
        raise ConnectionError(f"the connection ended after {part.stat().st_size:,} bytes")


def _check(entry: ZooEntry, part: Path) -> str:
    """Return the hash of a file if it is the published one; what is not is removed."""
    found, size = file_sha256(part), part.stat().st_size
    try:
        check_is_binary(part)
        if entry.hash and not found.startswith(entry.hash):
            raise ValueError(f"its sha256 is {found}, and that of the published file is {entry.hash}")
        if entry.size_bytes and size != entry.size_bytes:
            raise ValueError(f"it has {size:,} bytes, and the published file {entry.size_bytes:,}")
    except ValueError as error:
        part.unlink()
        raise CommandError(
            f"what came from {entry.url} is not {entry.name}, and was removed: {error}\n"
            "try again later; if it stays so, the publishers have put another file there"
        ) from error
    return found


def _unpack(archive: Path, target: Path) -> None:
    """Give the folder in an archive its name, or all that is in it."""
    aside = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(aside)  # leaves out leading slashes and parent folders
        inner = [each for each in aside.iterdir() if each.is_dir() and each.name != "__MACOSX"]
        (inner[0] if len(inner) == 1 else aside).rename(target)
    except zipfile.BadZipFile as error:
        raise CommandError(f"{archive} is no archive, and was removed: {error}; fetch it again") from error
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows only to https: to anything else the opener has no handler, but says so less plainly."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://"):
            raise urllib.error.URLError(f"the server sends on to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _https() -> Opener:
    """Return an opener that knows https alone: no http, no files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _SecureRedirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener.open


def _no_network(entry: ZooEntry, file: Path, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    where = file.parent if not file.name.endswith(".zip") else f"{file.parent}, unpacked"
    return (
        f"{entry.name} could not be fetched: {reason}\n"
        "run the command again when there is a connection: what has come is kept and gone on with\n"
        f"by hand: save {entry.url}\n"
        f"as {file.name} in {where}; its hash is checked when it is read"
    )


def _entry(name: str) -> ZooEntry:
    try:
        return zoo.find(name)
    except ValueError as error:
        raise CommandError(f"{error}\n`lightning-atlas weights list` shows all") from error


def _class_names(spec: dict[str, Any]) -> str:
    inner = [_class_names(each) for each in spec.get("init_args", {}).values() if zoo.is_spec(each)]
    return spec["class_path"].rpartition(".")[2] + (f"({', '.join(inner)})" if inner else "")


def _spec(spec: dict[str, Any]) -> str:
    arguments = spec.get("init_args", {}).items()
    inner = ", ".join(f"{key}={_spec(each) if zoo.is_spec(each) else each}" for key, each in arguments)
    return f"{spec['class_path'].rpartition('.')[2]}({inner})"


def _paragraph(title: str, text: str) -> str:
    first, others = f"  {title:<11}", " " * 13
    return textwrap.fill(
        text, 112, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
