"""What the README promises: its commands are the ones that CI runs, and whatever it names is there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

import lightning_atlas
from lightning_atlas.cli import main
from lightning_atlas.cli.command import VERBS
from lightning_atlas.cli.exporting import export_parser
from lightning_atlas.cli.inspecting import inspect_parser
from lightning_atlas.cli.preparing import prepare_parser
from lightning_atlas.cli.ranking import rank_parser
from lightning_atlas.cli.recipes import find_recipe
from lightning_atlas.cli.request import read_request
from lightning_atlas.intake.zoo import entries

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def commands(verb: str = "") -> list[list[str]]:
    """Return the words after `python -m lightning_atlas` wherever the README types a command, or one of a verb."""
    lines = [
        line
        for language in ("sh", "console", "powershell")
        for block in blocks(language)
        for line in block.splitlines()
    ]
    parts = [part for line in lines for part in re.split(r"&&|;", line)]
    typed = dict.fromkeys(part.split("lightning_atlas", 1)[1] for part in parts if "-m lightning_atlas" in part)
    return [words for words in map(shlex.split, typed) if verb in ("", words[0])]


def test_two_commands_install_run_and_test():
    first, second = blocks("sh")
    assert first.count("\n") == second.count("\n") == 1
    assert "recipes/quickstart.yaml" in first
    assert "python -m pytest" in second


def test_ci_runs_these_two_commands():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    function = re.search(r"^readme\(\) \{.*?^\}$", script, flags=re.MULTILINE | re.DOTALL)
    assert function
    for number, block in enumerate(blocks("sh"), start=1):
        assert f'"$(readme {number})"' in script
        shown = subprocess.run(
            ["bash", "-c", f"{function[0]}\nreadme {number}"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert shown.stdout == block


def test_the_two_commands_are_given_for_powershell_too():
    (powershell,) = blocks("powershell")
    for command in (
        "pip install -c constraints.txt .;",
        'pip install -c constraints.txt ".[test]"',
        "python -m pytest",
    ):
        assert command in powershell
    assert "fit --config recipes/quickstart.yaml" in powershell


PLANS = [words for words in commands("inspect") if "--rank" in words or "--picture" in words]


@pytest.mark.parametrize("words", PLANS, ids=" ".join)
def test_what_would_move_and_ranks_are_asked_of_recipes_that_exist(words):
    read = (rank_parser() if "--rank" in words else inspect_parser()).parse_args(words[1:])
    assert all(find_recipe(each).is_file() for each in read.config)


@pytest.mark.parametrize("words", [each for each in commands() if each not in PLANS], ids=" ".join)
def test_a_command_names_verbs_recipes_and_keys_that_exist(words, capsys):
    verb, *rest = words
    written = {each[each.index("--recipe") + 1] for each in commands() if "--recipe" in each}
    if verb == "prepare":
        assert prepare_parser().parse_args(rest).recipe.suffix == ".yaml"
    elif verb == "fit" and written & set(rest):
        assert rest[0] == "--config"
    elif verb == "fit":
        assert main([*words, "--print_config"]) == 0
    elif verb == "recipes" or words[:2] in (["weights", "list"], ["weights", "show"]):
        assert main(words) == 0
    elif verb == "weights":
        assert rest[0] == "fetch"
        assert rest[1] in entries()
    elif verb == "export":
        assert str(export_parser().parse_args(rest).run).startswith("runs")
    elif "--weights" in rest:
        assert read_request(verb, rest).weights in {each[each.index("--output") + 1] for each in commands("export")}
    else:
        assert verb in VERBS
        assert rest[0].startswith("runs/") or rest[1] == "--config"


def test_paths_in_the_text_exist():
    paths = re.findall(r"`((?:lightning_atlas|recipes|tests|notebooks|\.ci)/[\w/.]+|[\w.]+\.(?:toml|txt))`", TEXT)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_python_block_runs(capsys):
    (block,) = blocks("python")
    scope = {}
    exec(compile(block, "README.md", "exec"), scope)
    imported = re.findall(r"\w+", re.findall(r"from lightning_atlas import \((.*?)\)", block, flags=re.DOTALL)[0])
    assert set(imported) <= set(lightning_atlas.PUBLIC)
    assert 0 <= float(scope["trainer"].callback_metrics["test/dice"]) <= 1
