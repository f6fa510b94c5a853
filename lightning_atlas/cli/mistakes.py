"""What is wrong in a recipe, said with the file, the line, the key and the nearest right name.

jsonargparse names the last part of a wrong key at best. So when it refuses, the files and the command line are read
again here, in their order, against the signatures of the classes they name.
"""

import inspect
import logging
import re
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

from lightning_atlas.cli.signatures import (
    arguments_of,
    classes_in,
    find_class,
    nearest,
    spell,
    subclass_names,
    takes_plain_value,
)
from lightning_atlas.cli.sources import SPEC_KEYS, Keys, Mention, Source, dotted, items

LOGGER = "lightning_atlas.jsonargparse"
"""Name of the logger that the parsers are given."""
REASON = r"Problem with|No module|module |Import|File does not"
"""How those lines of jsonargparse begin that say more than which types it tried."""


@dataclass
class Reading:
    """Sources read in order against signatures: who wrote what, where, and which class it is for.

    Args:
        top: Annotation of each top-level key; `Trainer` stands for its own arguments.
        direct: Top-level keys that take the arguments of their class without `class_path`.
    """

    top: Mapping[str, Any]
    direct: tuple[str, ...] = ("trainer",)
    classes: dict[Keys, Callable[..., Any]] = field(default_factory=dict)
    named: dict[Keys, Mention] = field(default_factory=dict)
    mentions: list[Mention] = field(default_factory=list)
    changes: list[tuple[Mention, dict[str | int, Mention]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def place_of_class(self, candidates: Sequence[type]) -> str:
        """Return where the first of these classes is named, to stand before a message; nothing if none is."""
        for wanted in candidates:
            for keys, target in self.classes.items():
                if target is wanted:
                    return f"{self.named[keys].place}: {dotted(keys)} ({wanted.__name__}): "
        return next((f"{key}: " for key in self.direct if self.top[key] in candidates), "")

    def read(self, source: Source) -> None:
        """Take in one more source; `problems` grows by the names in it that nothing accepts."""
        for name, key, node in items(source.root):
            mention = Mention(source.name, (name,), node, self.top.get(name))
            self.mentions.append(mention)
            if name not in self.top:
                self._refuse_key(Mention(source.name, (name,), key, None), "a recipe", list(self.top))
            elif name in self.direct and isinstance(node, yaml.MappingNode):
                self._arguments(mention, classes_in(self.top[name])[0])
            else:
                self._value(mention)

    def _value(self, mention: Mention) -> None:
        node = mention.node
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._value(Mention(mention.source, (*mention.keys, index), item, mention.hint))
        elif isinstance(node, yaml.ScalarNode):
            if node.tag.endswith(":str") and classes_in(mention.hint) and not takes_plain_value(mention.hint):
                self._class(mention, node)
        elif dict not in {typing.get_origin(each) for each in (mention.hint, *typing.get_args(mention.hint))}:
            self._object(mention)

    def _object(self, mention: Mention) -> None:
        parts = {name: (key, value) for name, key, value in items(mention.node)}
        if "class_path" in parts and not self._class(mention, parts["class_path"][1]):
            return
        target = self.classes.get(mention.keys)
        if target is None and not parts.keys() & {"class_path", "init_args"}:
            target = next(iter(classes_in(mention.hint)), None)
        if target is None:
            return
        if not parts.keys() & set(SPEC_KEYS):
            keys = (*mention.keys, "init_args") if mention.keys in self.classes else mention.keys
            self._arguments(Mention(mention.source, keys, mention.node, None), target, also=SPEC_KEYS)
            return
        for name, (key, value) in parts.items():
            inner = Mention(mention.source, (*mention.keys, name), value, None)
            if name == "init_args" and isinstance(value, yaml.MappingNode):
                self._arguments(inner, target)
            elif name not in SPEC_KEYS:
                self._refuse_key(Mention(mention.source, inner.keys, key, None), "an object", list(SPEC_KEYS))

    def _class(self, mention: Mention, node: yaml.Node) -> bool:
        named = Mention(mention.source, mention.keys, node, mention.hint)
        target = find_class(named.text, mention.hint)
        if target is None:
            bases = subclass_names(classes_in(mention.hint))
            names = [name for name, each in bases.items() if not name.startswith("_") and not inspect.isabstract(each)]
            near = nearest(named.text.rpartition(".")[2], names, "known here")
            self.problems.append(f"{named.place}: {dotted(mention.keys)}: there is no class {named.text}\n{near}")
            return False
        if self.classes.get(mention.keys, target) is not target:
            given = {each.keys[-1]: each for each in self.mentions if each.keys[:-1] == (*mention.keys, "init_args")}
            self.changes.append((named, given))
        self.classes[mention.keys], self.named[mention.keys] = target, named
        return True

    def _arguments(self, mention: Mention, target: Callable[..., Any], also: Sequence[str] = ()) -> None:
        try:
            accepted = arguments_of(target)
        except ValueError:  # compiled code without a signature
            return
        for name, key, value in items(mention.node):
            keys = (*mention.keys, name)
            if name not in accepted:
                title = getattr(target, "__name__", str(target))
                self._refuse_key(Mention(mention.source, keys, key, None), title, [*accepted, *also])
                continue
            inner = Mention(mention.source, keys, value, accepted[name])
            self.mentions.append(inner)
            self._value(inner)

    def _refuse_key(self, mention: Mention, taker: str, names: Sequence[str]) -> None:
        near = nearest(str(mention.keys[-1]), names, f"{taker} takes")
        self.problems.append(f"{mention.place}: {dotted(mention.keys)} is not accepted\n{near}")


def read_all(sources: Sequence[Source], top: Mapping[str, Any]) -> Reading:
    """Read sources in order.

    Args:
        sources: Everything that was given.
        top: Annotation of each top-level key.
    """
    reading = Reading(top)
    for source in sources:
        reading.read(source)
    return reading


def explain(message: str, sources: Sequence[Source], top: Mapping[str, Any]) -> str:
    """Say in at most four lines what jsonargparse refused, and where it stands.

    Args:
        message: What jsonargparse said.
        sources: Everything that was given, in order.
        top: Annotation of each top-level key.
    """
    reading = read_all(sources, top)
    if reading.problems:
        return reading.problems[0]
    if missing := re.match(r"the following arguments are required: (.*)", message):
        names = missing[1].split(", ")
        return f"nothing given says {' and '.join(name.rpartition('.')[2] for name in names)}: name a recipe\n" + (
            "`lightning-atlas recipes list` shows those that come with the package"
        )
    *_, (key, detail) = [("", ""), *re.findall(r'Parser key "([^"]+)":\s*((?:(?!Parser key ").)*)', message, re.DOTALL)]
    if mention := _mention_of(key, detail, reading.mentions):
        return _wrong_value(mention, detail)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return "\n".join(textwrap.shorten(line, 300) for line in lines[:4])


def _mention_of(key: str, message: str, mentions: Sequence[Mention]) -> Mention | None:
    named = [each for each in mentions if f".{dotted(each.keys)}".endswith(f".{key}")]
    given = re.search(r"(?:Got value|Given value): (.*)", message)
    exact = [each for each in named if given and each.text == given[1].strip()]
    return next(reversed(exact or named), None)


def _wrong_value(mention: Mention, detail: str) -> str:
    value = textwrap.shorten(mention.text, 120)
    first = f"{mention.place}: {dotted(mention.keys)}: expected {spell(mention.hint)}, got {value}"
    reasons = [line.strip(" -") for line in detail.splitlines()]
    told = [line for line in reasons if re.match(REASON, line)]
    return "\n".join([first, *(textwrap.shorten(line, 300) for line in told[:2])])


class _Listener(logging.Handler):
    """Keeps what jsonargparse says of discarded arguments."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "discarding init_args" in message:
            self.heard.append(message)


@contextmanager
def discarded_arguments() -> Iterator[list[str]]:
    """Yield a list that fills with jsonargparse's words on arguments that it discards: only its debug log has them."""
    listener, logger = _Listener(), logging.getLogger(LOGGER)
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    try:
        yield listener.heard
    finally:
        logger.setLevel(logging.CRITICAL)
        logger.removeHandler(listener)


def name_discarded(heard: Sequence[str], sources: Sequence[Source], top: Mapping[str, Any]) -> list[str]:
    """Return a line for each argument somebody wrote that a changed class does not take.

    Args:
        heard: What jsonargparse's log said.
        sources: Everything that was given, in order.
        top: Annotation of each top-level key.
    """
    reading = read_all(sources if heard else [], top)
    return [
        f"{named.place}: {dotted(named.keys)} is now {named.text}, which drops {key}: {each.text} ({each.place})"
        for named, given in reading.changes
        for key, each in given.items()
        if any(f"{named.text.rpartition('.')[2]}', discarding" in words and f"'{key}': " in words for words in heard)
    ]
