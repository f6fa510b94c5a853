"""From a command to a run: Lightning's verbs on recipes and on run folders, and a few verbs of our own."""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning_atlas
from lightning_atlas.cli.recipes import INTERRUPTED, CommandError, run_recipes_verb
from lightning_atlas.cli.request import RUN_VERBS, read_request
from lightning_atlas.cli.run_folder import describe_run, is_run

VERBS = (*RUN_VERBS, "prepare", "inspect", "recipes")
HELP = """usage: lightning-atlas VERB ... [--debug]

  prepare PATH [--recipe FILE] [--check]       look scans through, and write a recipe for them
  fit RECIPE [RECIPE ...] [--KEY VALUE ...]    train, and end in a folder runs/RECIPE/TIME
  test RUN | validate RUN                      score the last checkpoint of such a folder again
  predict RUN --input DIR --output DIR [--overwrite]
                                               segment every scan in a folder, in the scan's own grid
  inspect RUN                                  what its checkpoint is, what it expects, how it scored
  recipes list | show NAME | copy NAME [FILE]  the recipes that come with the package

Later recipes change earlier ones, and --KEY VALUE changes both: --trainer.max_epochs 5, --data.batch_size 1.
A RECIPE is a file or a packaged recipe's name; --config RECIPE says the same. test, validate and predict take
recipes and --ckpt_path FILE too. --print_config prints what would run; VERB --help lists every key.
`python -m lightning_atlas` is the same as `lightning-atlas`; --debug shows the traceback of an error."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        args: The words after the program's name; those of this process by default.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return _dispatch(words)
    except CommandError as error:
        if debug:
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        head = "" if error.exit_code == INTERRUPTED else "error: "
        print(head + "\n".join(line[:400] for line in lines[:5]), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C before anything ran", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:  # of a printed recipe or help text
        return int(end.code or 0)


def _dispatch(words: Sequence[str]) -> int:
    verb, rest = (words[0], words[1:]) if words else ("--help", [])
    if verb in ("--help", "-h", "help"):
        print(HELP)
    elif verb == "--version":
        print(f"lightning_atlas {lightning_atlas.__version__}")
    elif verb == "recipes":
        run_recipes_verb(rest)
    elif verb == "inspect":
        if len(rest) != 1 or not is_run(Path(rest[0])):
            raise CommandError(
                f"write `inspect RUN`: a folder with recipe.yaml, in which a fit ended; got {' '.join(rest)!r}"
            )
        print(describe_run(Path(rest[0])))
    elif verb == "prepare":
        from lightning_atlas.cli.preparing import run_prepare  # loads torch and all parts

        run_prepare(rest)
    elif verb in RUN_VERBS:
        request = read_request(verb, rest)
        from lightning_atlas.cli.runner import run  # loads torch, Lightning and all parts

        run(request)
    else:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise CommandError(
            f"there is no verb {verb}" + (f"; did you mean {near[0]}?" if near else "") + f"\nverbs: {', '.join(VERBS)}"
        )
    return 0
