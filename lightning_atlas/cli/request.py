"""The words of a command, sorted: a verb, a run folder or recipes, options."""

import difflib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from lightning_atlas.cli.recipes import CommandError, find_recipe, recipes_folder
from lightning_atlas.cli.run_folder import is_run, last_checkpoint

RUN_VERBS = ("fit", "validate", "test", "predict")
"""Lightning's verbs."""


@dataclass
class Request:
    """What a command line asks one of Lightning's verbs to do.

    Args:
        verb: `fit`, `validate`, `test` or `predict`.
        words: What was typed after the verb.
        configs: Recipes in the order of merging.
        options: What Lightning's parser reads: `--model.weights=...`.
        run: Folder of an earlier fit that stands in the place of a recipe.
        checkpoint: The one that is taken: of that run, or the one that was typed.
        weights: What `predict` takes in the place of a run, and `test` in that of a recipe's: a folder of an export, a
            published name, a file.
        input: Folder of scans to predict on.
        output: Folder for predictions.
        overwrite: Whether predictions may be replaced.
        allow: Keys in which scans to predict on may lie outside of what training saw.
    """

    verb: str
    words: list[str] = field(default_factory=list)
    configs: list[Path] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    run: Path | None = None
    checkpoint: Path | None = None
    weights: str | None = None
    input: Path | None = None
    output: Path | None = None
    overwrite: bool = False
    allow: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the run is called: its first recipe."""
        return self.configs[0].stem if self.configs else "run"

    @property
    def command(self) -> str:
        """What to type to get the same again."""
        return shlex.join(["lightning-atlas", self.verb, *self.words])

    @property
    def changes_the_run(self) -> bool:
        """Whether an earlier fit is scored in another way than it was made, so that its own scores must stay."""
        touched = ("--data", "--model", "--seed_everything")
        return len(self.configs) > 1 or any(word.startswith(touched) for word in self.options)

    @property
    def asks_only(self) -> bool:
        """Whether standard output belongs to a printed recipe or a help text."""
        return any(word.startswith(("--print_config", "--help", "-h")) or ".help" in word for word in self.options)


def read_request(verb: str, words: Sequence[str]) -> Request:
    """Sort the words after a verb.

    Raises:
        CommandError: A recipe or checkpoint is not found, or an option lacks its value.
    """
    request, rest = Request(verb, list(words)), list(words)
    if verb != "fit" and rest and is_run(Path(rest[0])):
        request.run = Path(rest.pop(0))
        request.configs.append(request.run / "recipe.yaml")
    _read_recipes(request, rest)
    while rest:
        _read_option(request, rest)
    _check_order(request.options)
    if request.run and not request.checkpoint:
        request.checkpoint = last_checkpoint(request.run)
    _check_prediction(request)
    if request.input and request.output and request.input.resolve() == request.output.resolve():
        raise CommandError(f"--output {request.output} is the folder of the scans: predictions would replace them")
    return request


def _check_order(options: Sequence[str]) -> None:
    """Refuse a recipe of the package behind an option that has its value already."""
    for before, word in pairwise(options):
        behind_value = not before.startswith("-") or "=" in before
        if behind_value and not word.startswith("-") and (recipes_folder() / f"{word}.yaml").is_file():
            raise CommandError(f"{word} is a recipe: write recipes before the options that start with --")


def _check_prediction(request: Request) -> None:
    what = f"--weights {request.weights}" if request.weights else "RUN" if request.run else None
    if request.verb != "predict" or what is None or request.asks_only:
        return
    if request.weights and (extra := [*request.configs, *filter(None, [request.checkpoint])]):
        raise CommandError(
            f"--weights {request.weights} brings its own network and preprocessing: leave out {extra[0]}, or name the "
            "weights in the recipe (model.init_args.weights) and fit it"
        )
    if not (request.input and request.output):
        raise CommandError(f"write `predict {what} --input DIR --output DIR`: where the scans are, where results go")


def _read_recipes(request: Request, rest: list[str]) -> None:
    while rest and not rest[0].startswith("-"):
        request.configs.append(find_recipe(rest.pop(0)))


def _read_option(request: Request, rest: list[str]) -> None:
    key, equals, _ = rest[0].partition("=")
    if key in ("--config", "-c"):
        request.configs.append(find_recipe(_value(rest)))
        _read_recipes(request, rest)
    elif key == "--ckpt_path":
        _read_checkpoint(request, _value(rest))
    elif request.verb == "predict" and key in ("--input", "--output"):
        setattr(request, key.removeprefix("--"), Path(_value(rest)))
    elif request.verb != "fit" and key == "--weights":
        request.weights = _value(rest)
    elif request.verb == "predict" and key == "--allow":
        request.allow += _value(rest).split(",")
    elif request.verb == "predict" and key == "--overwrite" and not equals:
        request.overwrite = bool(rest.pop(0))
    else:
        request.options.append(rest.pop(0))


def _read_checkpoint(request: Request, word: str) -> None:
    """Take a checkpoint's file, a run's last one, or one of Lightning's words for one."""
    path = Path(word)
    if word in ("best", "last", "hpc", "null"):
        request.options.append(f"--ckpt_path={word}")
    elif path.is_dir() and is_run(path):
        request.checkpoint = last_checkpoint(path)
    elif path.exists():
        request.checkpoint = path
    else:
        near = difflib.get_close_matches(path.name, [each.name for each in path.parent.glob("*.ckpt")], n=1, cutoff=0)
        hint = f"; near: {path.with_name(near[0])}" if near else ""
        raise CommandError(f"--ckpt_path {word}: there is no such file or run{hint}")


def _value(rest: list[str]) -> str:
    key, equals, value = rest.pop(0).partition("=")
    if not equals and (not rest or rest[0].startswith("--")):
        raise CommandError(f"{key} needs a value: {key} PATH")
    return value if equals else rest.pop(0)
