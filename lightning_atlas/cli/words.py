"""The words after a verb of our own."""

import argparse
import re
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning_atlas.cli.recipes import CommandError


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

    def error(self, message: str) -> NoReturn:
        """Raise what the command line prints, with the nearest option that there is."""
        options = [name for action in self._actions for name in action.option_strings]
        unknown = re.findall(r"(--[\w-]+)", message) if message.startswith("unrecognized") else []
        near = [each for word in unknown[:1] for each in get_close_matches(word, options, n=1)]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise CommandError(f"{self.verb}: {message}{hint}\nwrite `{self.form}`; `{self.verb} --help` lists the options")
