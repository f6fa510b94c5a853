"""What the README promises: its commands are the ones that CI runs, and whatever it names is there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

import lightning_atlas

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Return the words after `python -m lightning_atlas` wherever the README types a command."""
    lines = [
        line
        for language in ("sh", "console", "powershell")
        for block in blocks(language)
        for line in block.splitlines()
    ]
    parts = [part for line in lines for part in re.split(r"&&|;", line)]
    typed = dict.fromkeys(part.split("lightning_atlas", 1)[1] for part in parts if "-m lightning_atlas" in part)
    return [shlex.split(words) for words in typed]


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


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_names_verbs_and_recipes_that_exist(words):
    from lightning_atlas.cli.command import VERBS
    from lightning_atlas.cli.recipes import find_recipe

    Path("mine.yaml").touch()  # the reader's own
    verb, *rest = words
    assert verb in VERBS
    if verb == "recipes":
        assert rest[0] in ("list", "show", "copy")
        rest = rest[1:]
    for word in rest:
        if word.startswith("--") and word != "--config":
            break
        if word != "--config" and not word.startswith("runs/"):
            assert find_recipe(word).is_file()


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


def test_the_overlay_for_own_scans_fits_the_quickstart(capsys):
    from lightning_atlas.cli import main

    (overlay,) = blocks("yaml")
    Path("mine.yaml").write_text(overlay, encoding="utf-8")
    assert main(["fit", "quickstart", "mine.yaml", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "ScanFolder" in printed
    assert "SimulatedCohort" not in printed
