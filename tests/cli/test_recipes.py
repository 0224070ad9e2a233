"""`fedpath recipes`: listed, shown, written."""

import json
from pathlib import Path

import pytest
from command import fedpath

from fedpath.core.recipes import find_recipe, recipes


@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "list"]])
def test_recipes_are_listed(arguments: list[str]) -> None:
    run = fedpath(*arguments)
    assert run.code == 0
    for recipe in recipes():
        assert recipe.name in run.out
        assert recipe.title in run.out
    listed = json.loads(fedpath(*arguments, "--json").out)
    assert [one["name"] for one in listed] == [recipe.name for recipe in recipes()]


def test_a_recipe_is_shown_as_it_is() -> None:
    assert fedpath("recipes", "show", "bd").out == find_recipe("bd").text
    assert json.loads(fedpath("recipes", "show", "bd", "--json").out)["text"] == find_recipe("bd").text
    fedpath("recipes", "show", "bda").assert_error(2, "no recipe is called 'bda'", "did you mean 'bd'?")


def test_a_recipe_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "federation.toml"
    run = fedpath("recipes", "write", "longmil", "--out", path)
    assert run.code == 0
    assert f"wrote {path}" in run.out
    assert path.read_text() == find_recipe("longmil").text
    path.write_text("mine")
    fedpath("recipes", "write", "longmil", "--out", path).assert_error(2, f"{path}: exists already", "--out")
    assert path.read_text() == "mine"


def test_json_goes_behind_the_command() -> None:
    run = fedpath("recipes", "--json", "list")
    assert run.code == 2
    assert "goes behind the command" in json.loads(run.err)["error"]["message"]
