"""From a command to a run: Lightning's verbs on recipes and on run folders, and a few verbs of our own."""

import difflib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import lightning_atlas
from lightning_atlas.cli.recipes import INTERRUPTED, TERMINATED, CommandError, run_recipes_verb
from lightning_atlas.cli.request import RUN_VERBS, read_request

WORK = {
    "prepare": ("preparing", "run_prepare"),
    "export": ("exporting", "run_export"),
    "merge": ("merging", "run_merge"),
    "inspect": ("inspecting", "run_inspect"),
    "weights": ("fetching", "main"),
}
"""Verb -> module of this folder and function that does it; imported only then, since most load torch and all parts."""
LAUNCHED = ("LOCAL_RANK", "SLURM_PROCID")
"""One of them is set in each of several processes that train together: by Lightning, torchrun or srun."""
VERBS = (*RUN_VERBS, *WORK, "recipes")
HELP = """usage: lightning-atlas VERB ... [--debug]

  prepare PATH [--recipe FILE] [--check]       look scans through, and write a recipe for them
  fit RECIPE [RECIPE ...] [--KEY VALUE ...]    train, and end in a folder runs/RECIPE/TIME
  test RUN | validate RUN                      score the last checkpoint of such a folder again
  test RECIPE --weights WEIGHTS                score weights as they are, in the classes that they share with the recipe
  predict RUN --input DIR --output DIR [--overwrite] [--allow KEYS]
                                               segment every scan in a folder, in the scan's own grid
  predict --weights WEIGHTS --input DIR --output DIR
                                               the same by weights alone, without a run or a recipe
  export RUN --output FOLDER [--licence SPDX]  hand its weights on: tensors, contract, scores, a card
  merge RUN [RUN ...] --method wise|greedy|uniform --output FOLDER
                                               between its weights and those it began from; or runs' mean
  inspect RUN                                  what its checkpoint is, what it expects, how it scored
  inspect WEIGHTS [--config RECIPE] [--json]   what they are, and what a recipe would take of them
  inspect --config RECIPE [--picture FILE]     what would move in a fit, when and how fast
  inspect --rank WEIGHTS WEIGHTS ... --config RECIPE
                                               put weights in an order for a recipe, without training
  weights list | show NAME | fetch NAME        published weights: names, cards, downloads
  recipes list | show NAME | copy NAME [FILE]  the recipes that come with the package

Later recipes change earlier ones, and --KEY VALUE changes both: --trainer.max_epochs 5, --data.batch_size 1.
A RECIPE is a file or a packaged recipe's name; --config RECIPE says the same. WEIGHTS is a folder that `export` made,
a published name or a file. test, validate and predict take recipes and --ckpt_path FILE too. --print_config prints
what would run; VERB --help lists every key.
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
        head = "" if error.exit_code in (INTERRUPTED, TERMINATED) else "error: "
        print(head + "\n".join(line[:400] for line in lines[:5]), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C before anything ran", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:  # of a printed recipe or help text
        return int(end.code or 0)


def run() -> NoReturn:
    """Run the command of this process, and end the process with its exit code."""
    leave(main())


def leave(code: int) -> NoReturn:
    """End this process; one of several at once, since threads of gloo may abort an interpreter that cleans up.

    Args:
        code: The exit code.
    """
    if any(name in os.environ for name in LAUNCHED):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _dispatch(words: Sequence[str]) -> int:
    verb, rest = (words[0], words[1:]) if words else ("--help", [])
    if verb in ("--help", "-h", "help"):
        print(HELP)
    elif verb == "--version":
        print(f"lightning_atlas {lightning_atlas.__version__}")
    elif verb == "recipes":
        run_recipes_verb(rest)
    elif verb in WORK:
        module, name = WORK[verb]
        getattr(import_module(f"lightning_atlas.cli.{module}"), name)(rest)
    elif verb in RUN_VERBS:
        request = read_request(verb, rest)
        direct = ("segmenting", "segment") if verb == "predict" else ("direct", "score")
        module, name = direct if request.weights else ("runner", "run")
        getattr(import_module(f"lightning_atlas.cli.{module}"), name)(request)
    else:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise CommandError(
            f"there is no verb {verb}" + (f"; did you mean {near[0]}?" if near else "") + f"\nverbs: {', '.join(VERBS)}"
        )
    return 0
