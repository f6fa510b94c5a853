"""Recipes and command-line options as trees that know where each value was written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from lightning_atlas.cli.recipes import CommandError

COMMAND_LINE = "command line"
SPEC_KEYS = ("class_path", "init_args", "dict_kwargs")
Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """A recipe, or the options of the command line, as a tree of YAML nodes that know their lines."""

    name: str
    root: yaml.Node


@dataclass(frozen=True)
class Mention:
    """A value as somebody wrote it, and the annotation of the argument that it is for."""

    source: str
    keys: Keys
    node: yaml.Node
    hint: Any

    @property
    def place(self) -> str:
        """File and line, or the command line."""
        line = getattr(self.node.start_mark, "line", None)
        return self.source if line is None else f"{self.source}, line {line + 1}"

    @property
    def text(self) -> str:
        """The value as it was written."""
        if isinstance(self.node, yaml.ScalarNode):
            return self.node.value
        inline = isinstance(self.node, yaml.CollectionNode) and self.node.flow_style
        return yaml.serialize(self.node, width=10_000).strip() if inline else str(_plain(self.node))


def dotted(keys: Keys) -> str:
    """Spell a place in a recipe: `data.init_args.augment[0].init_args.axes`."""
    return reduce(lambda done, key: f"{done}[{key}]" if isinstance(key, int) else f"{done}.{key}", keys, "")[1:]


def read_sources(recipes: Sequence[Path], options: Sequence[str]) -> list[Source]:
    """Read recipes and options into trees, in the order in which they are merged.

    Raises:
        CommandError: A file is no YAML, holds no keys, or gives a key twice.
    """
    return [Source(str(path), _read_recipe(path)) for path in recipes] + [
        Source(COMMAND_LINE, _option_tree(key, text)) for key, text in _option_values(options)
    ]


def _read_recipe(path: Path) -> yaml.Node:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise CommandError(f"{place}: this is no YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(root, yaml.MappingNode):
        found = "it is empty" if root is None else "it holds no keys"
        raise CommandError(f"{path}: a recipe holds `key: value` lines such as `model:` and `data:`, but {found}")
    _refuse_doubles(path, root, set())
    return root


def _refuse_doubles(path: Path, node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for name, key, value in items(node):
        if name in lines:
            raise CommandError(f"{path}, line {_line(key)}: {name} stands here again, first in line {lines[name]}")
        lines[name] = _line(key)
        _refuse_doubles(path, value, seen)
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        _refuse_doubles(path, item, seen)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _option_values(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    words = list(options)
    while words:
        key, equals, text = words.pop(0).partition("=")
        if not equals and words and not words[0].startswith("--"):
            text = words.pop(0)
        asks = key.startswith("--print_config") or key.endswith("help")
        if key.startswith("--") and not asks:
            yield key.removeprefix("--"), text


def _option_tree(key: str, text: str) -> yaml.Node:
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    node = node or yaml.ScalarNode("tag:yaml.org,2002:str", text)
    _forget_lines(node)
    for part in reversed(key.split(".")):
        node = yaml.MappingNode("tag:yaml.org,2002:map", [(yaml.ScalarNode("tag:yaml.org,2002:str", part), node)])
    return node


def _forget_lines(node: yaml.Node) -> None:
    node.start_mark = None
    for child in node.value if isinstance(node.value, list) else ():
        for each in child if isinstance(child, tuple) else (child,):
            _forget_lines(each)


def items(node: yaml.Node) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yield name, key and value of a mapping's entries; `callbacks+` is an entry of `callbacks`."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            yield key.value.removesuffix("+"), key, value


def _plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {_plain(key): _plain(value) for key, value in node.value}
    return [_plain(item) for item in node.value] if isinstance(node, yaml.SequenceNode) else node.value
