"""Where recipes lie, and the verbs that show them."""

import difflib
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended: 128 and the number of the signal."""
TERMINATED = 143
"""Likewise of one that SIGTERM ended, as `kill` and clusters send it."""


class CommandError(Exception):
    """What ends a command with a few lines on standard error instead of a traceback.

    Args:
        message: What was found, what was expected, where, and what to type; five lines at most are shown.
        exit_code: 2 for what a person can mend in a recipe or a command.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def recipes_folder() -> Path:
    """Return the folder of the recipes that come with the package: beside it in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes, such as `machine/cpu`."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_recipe(word: str) -> Path:
    """Return the file that a command means: one on disk, or else a packaged recipe.

    Args:
        word: A path or a packaged recipe's name, with or without `.yaml`; `recipes/` before a name is allowed.

    Raises:
        CommandError: There is no such file and no such recipe.
    """
    packaged = recipes_folder() / word.removeprefix("recipes/")
    for path in (Path(word), Path(f"{word}.yaml"), packaged, packaged.with_name(f"{packaged.name}.yaml")):
        if path.is_file():
            return path
    if Path(word).is_dir():
        runs = sorted(each.parent.as_posix() for each in Path(word).glob("*/recipe.yaml"))
        hint = f"\nthe newest run in it: {runs[-1]}" if runs else ""
        raise CommandError(f"{word} is a folder, and no fit ended there: it has no recipe.yaml{hint}")
    name = word.removeprefix("recipes/").removesuffix(".yaml")
    names = {each.rsplit("/", 1)[-1]: each for each in recipe_names()} | {each: each for each in recipe_names()}
    near = [names[each] for each in difflib.get_close_matches(name, names, n=1)]
    raise CommandError(
        f"no recipe {word}: there is no such file in {Path.cwd()}, nor a recipe of this name in the package\n"
        + (f"did you mean {near[0]}?" if near else "`lightning-atlas recipes list` shows the packaged ones")
    )


def run_recipes_verb(words: Sequence[str]) -> None:
    """Do what `recipes list|show NAME|copy NAME [DEST]` asks for.

    Raises:
        CommandError: The words are not one of these, or a file would be overwritten.
    """
    match list(words):
        case [] | ["list"]:
            for name in recipe_names():
                print(f"{name:32} {_title(recipes_folder() / f'{name}.yaml')}")
        case ["show", name]:
            print(find_recipe(name).read_text(encoding="utf-8"), end="")
        case ["copy", name]:
            _copy(find_recipe(name), Path())
        case ["copy", name, destination]:
            _copy(find_recipe(name), Path(destination))
        case _:
            raise CommandError("write `recipes list`, `recipes show NAME` or `recipes copy NAME [DESTINATION]`")


def _copy(recipe: Path, destination: Path) -> None:
    target = destination / recipe.name if destination.is_dir() else destination
    if target.exists():
        raise CommandError(f"{target} exists and is not overwritten; name another file: recipes copy NAME DESTINATION")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(recipe, target)
    print(f"{recipe} -> {target}")


def _title(recipe: Path) -> str:
    first = recipe.read_text(encoding="utf-8").split("\n", 1)[0]
    return textwrap.shorten(first.removeprefix("#"), 86, placeholder=" ...") if first.startswith("#") else ""
