"""The commands in a recipe's header, as words; a loop of the shell is gone through once with its first values."""

import re
import shlex
from pathlib import Path

from lightning_atlas.cli import main
from lightning_atlas.cli.recipes import recipes_folder


def header(path: Path) -> str:
    """Return the lines of comment that a recipe begins with, without their marks, continued lines joined."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("#") for line in lines if line.startswith("#")).replace("\\\n", " ")


def loops(text: str) -> dict[str, list[str]]:
    """Return what each variable of the loops in a header takes in turn."""
    return {name: values.split() for name, values in re.findall(r"for (\w+) in ([^;]+);", text)}


def commands(path: Path) -> list[list[str]]:
    """Return the words of each command after `python -m lightning_atlas`."""
    text = header(path)
    for name, values in loops(text).items():
        text = text.replace(f"${name}", values[0])
    return [shlex.split(each) for each in re.findall(r"python -m lightning_atlas (.*)", text)]


def parses(words: list[str]) -> bool:
    """Tell whether a command's recipes exist and take its options; the weights of a score need not be there."""
    if "--weights" in words:
        place = words.index("--weights")
        words = [*words[:place], *words[place + 2 :]]
    return main([*words, "--print_config"]) == 0


def recipe(place: str) -> Path:
    """Return the file of a packaged recipe such as `target/esophagus_ct`."""
    return recipes_folder() / f"{place}.yaml"
