"""The words after a verb of our own."""

import argparse
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning_atlas.cli.recipes import CommandError

_KEY = re.compile(r"(--\w+(\.\w+)+\+?)(=.*)?", re.DOTALL)
"""A key of a recipe, and perhaps its value."""


class Words(argparse.ArgumentParser):
    """Reads the words after a verb, and says what is wrong in this package's way.

    Args:
        verb: The verb.
        form: How a right command reads.
        kwargs: Those of `ArgumentParser`.
    """

    def __init__(self, verb: str, form: str, **kwargs: Any) -> None:
        super().__init__(prog=f"lightning-atlas {verb}", allow_abbrev=False, **kwargs)
        self.verb, self.form = verb, form

    def read_with_changes(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the options, and the words that change keys of a recipe (`--model.weights FILE`), each in one word.

        Raises:
            CommandError: An option is unknown.
        """
        joined: list[str] = []
        for word in words:
            if joined and (key := _KEY.fullmatch(joined[-1])) and not key[3] and not word.startswith("--"):
                joined[-1] = f"{joined[-1]}={word}"  # else the value would be taken for a word of the verb's own
            else:
                joined.append(word)
        # Not left to argparse, which takes a word with a space for one of the verb's own.
        changes = [word for word in joined if _KEY.fullmatch(word)]
        options, others = self.parse_known_args([word for word in joined if not _KEY.fullmatch(word)])
        if foreign := [word for word in others if word.startswith("-") and "." not in word]:
            self.error(f"unrecognized arguments: {foreign[0]}")
        return options, [*changes, *others]

    def error(self, message: str) -> NoReturn:
        """Raise what the command line prints, with the nearest option that there is."""
        options = [name for action in self._actions for name in action.option_strings]
        unknown = re.findall(r"(--[\w-]+)", message) if message.startswith("unrecognized") else []
        near = [each for word in unknown[:1] for each in get_close_matches(word, options, n=1)]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise CommandError(f"{self.verb}: {message}{hint}\nwrite `{self.form}`; `{self.verb} --help` lists the options")
