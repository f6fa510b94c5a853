"""What classes and functions accept: the names and annotations that a recipe may use."""

import collections.abc
import difflib
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any


def classes_in(hint: Any) -> list[type]:
    """Return the classes of which an annotation wants instances: in unions, in containers, or made by a callable."""
    arguments = typing.get_args(hint)
    if isinstance(hint, type) and not arguments:
        return [] if hint.__module__ in ("builtins", "pathlib", "datetime") else [hint]
    if typing.get_origin(hint) is collections.abc.Callable:
        arguments = arguments[-1:]
    return [each for argument in arguments for each in classes_in(argument)]


def arguments_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Return names and annotations of the arguments of a class or function; bases', where `**kwargs` goes to them."""
    found: dict[str, Any] = {}
    if not isinstance(target, type):
        return {name: _hints(target).get(name, Any) for name in inspect.signature(target).parameters}
    for call in (vars(each)["__init__"] for each in target.__mro__[:-1] if "__init__" in vars(each)):
        parameters, hints = list(inspect.signature(call).parameters.values())[1:], _hints(call)
        named = [each.name for each in parameters if "VAR" not in each.kind.name]
        found = {name: hints.get(name, Any) for name in named} | found
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return found


def _hints(call: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(call))
    except (NameError, TypeError):  # a name that exists for type checkers only
        return {}


def subclass_names(bases: Sequence[type]) -> dict[str, type]:
    """Return the classes that are loaded and derive from one of these, by their short names."""
    found: dict[str, type] = {}
    waiting = list(bases)
    while waiting:
        each = waiting.pop()
        if found.get(each.__name__) is not each:
            found[each.__name__] = each
            waiting += type.__subclasses__(each)
    return found


def find_class(name: str, hint: Any) -> Callable[..., Any] | None:
    """Return the class or function that a `class_path` means where this annotation stands."""
    module, _, last = name.rpartition(".")
    if not module:
        return subclass_names(classes_in(hint)).get(name)
    try:
        return getattr(import_module(module), last, None)
    except ImportError:
        return None


def spell(hint: Any) -> str:
    """Spell an annotation as a person would: `int or null`, `list[str]`, `one of 16, 32`."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    literals = [part for part in parts if typing.get_origin(part) is typing.Literal]
    choices = dict.fromkeys(str(choice) for part in literals for choice in typing.get_args(part))
    words = [f"one of {', '.join(choices)}"] if choices else []
    return " or ".join(words + [_word(part) for part in parts if part not in literals])


def _word(hint: Any) -> str:
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else re.sub(r"\b\w+\.", "", str(hint))


def nearest(word: str, names: Iterable[str], what: str) -> str:
    """Return a line with the name that was probably meant, and those that there are.

    Args:
        word: What was written.
        names: What could have been written.
        what: Stands before the list of names.
    """
    lower = {name.lower(): name for name in sorted(names)}
    begins = [name for name in lower if name.startswith(word.lower()) and len(word) > 2]
    close = begins or difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    listed = f"{what}: " + textwrap.shorten(", ".join(lower.values()), 120, placeholder=" ...")
    return f"did you mean {lower[close[0]]}? {listed}" if close else listed


def takes_plain_value(hint: Any) -> bool:
    """Tell whether an argument may be text or a number, so that a word need not name a class."""
    if hint in (str, int, float, Any, Path) or typing.get_origin(hint) is typing.Literal:
        return True
    return any(takes_plain_value(each) for each in typing.get_args(hint))
