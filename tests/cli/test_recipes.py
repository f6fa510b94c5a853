"""Recipes are found on disk first, then in the package."""

from pathlib import Path

import pytest

from lightning_atlas.cli.recipes import CommandError, find_recipe, recipe_names, recipes_folder


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A package folder with two recipes, and a working folder beside it."""
    recipes = tmp_path / "package" / "recipes"
    for name, title in {"quick": "# Quick one.", "machine/small": "# Small machine."}.items():
        (recipes / name).parent.mkdir(parents=True, exist_ok=True)
        (recipes / f"{name}.yaml").write_text(f"{title}\ntrainer: {{}}\n", encoding="utf-8")
    monkeypatch.setattr("lightning_atlas.cli.recipes.recipes_folder", lambda: recipes)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return recipes


@pytest.mark.parametrize("word", ["machine/small", "machine/small.yaml", "recipes/machine/small.yaml"])
def test_packaged_recipes_are_found_with_and_without_their_ending(packaged, word):
    assert find_recipe(word) == packaged / "machine" / "small.yaml"


def test_a_file_on_disk_wins(packaged):
    Path("machine").mkdir()
    for name in ("machine/small.yaml", "quick.yaml"):
        Path(name).write_text("trainer: {}", encoding="utf-8")
    assert find_recipe("machine/small.yaml") == Path("machine/small.yaml")
    assert find_recipe("quick") == Path("quick.yaml")


@pytest.mark.parametrize(
    ("word", "near"), [("qick", "quick"), ("smal", "machine/small"), ("machine/smal", "machine/small")]
)
def test_an_unknown_name_gets_the_nearest(packaged, word, near):
    with pytest.raises(CommandError, match=f"did you mean {near}"):
        find_recipe(word)


def test_list_show_and_copy(packaged, command, monkeypatch):
    assert recipe_names() == ["machine/small", "quick"]
    assert "Small machine." in command("recipes", "list")[1]
    assert command("recipes", "show", "quick")[1] == "# Quick one.\ntrainer: {}\n"
    assert command("recipes", "copy", "quick", "mine/own.yaml")[0] == 0
    assert Path("mine/own.yaml").read_text(encoding="utf-8") == "# Quick one.\ntrainer: {}\n"
    code, _, err = command("recipes", "copy", "quick", "mine/own.yaml")
    assert code == 2
    assert "not overwritten" in err


def test_the_checkout_has_recipes_beside_the_package():
    assert recipes_folder() == Path(__file__).parents[2] / "recipes"
    assert "quickstart" in recipe_names()
