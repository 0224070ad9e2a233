"""Every recipe is a file that its loader takes, and each that needs no slides trains a federation as it is written."""

import re
import threading
from pathlib import Path

import pytest
from in_process import Sites

from fedpath.cli.simulate.coordinate import coordinate
from fedpath.cli.simulate.planted import draw_bags, manifest
from fedpath.core.config import FederationConfig, load_federation
from fedpath.core.errors import ConfigError
from fedpath.core.events import EventLog
from fedpath.core.recipes import ORDER, Recipe, find_recipe, recipes
from fedpath.server.stages import check_models

NAMES = ["A", "B"]
CLINICAL = """
[clinical]
table = "clinical.csv"
patient_column = "patient_id"
[clinical.columns]
age = "age"
er = "er"
"""
ALL = pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)


def loaded(text: str, folder: Path) -> FederationConfig:
    (folder / "federation.toml").write_text(text)
    return load_federation(folder / "federation.toml")


@ALL
def test_a_recipe_loads_as_it_is(recipe: Recipe, tmp_path: Path) -> None:
    config = loaded(recipe.text, tmp_path)
    assert config.federation.sites == ["A", "B", "C"]
    assert all(len(line) <= 120 for line in recipe.text.splitlines())


@ALL
def test_a_recipe_says_what_it_is(recipe: Recipe) -> None:
    assert re.match(r"\w+: \w", recipe.title)
    assert recipe.summary.endswith(".")
    assert len(recipe.summary) > 80
    assert "#" not in recipe.title + recipe.summary
    assert find_recipe(recipe.name) == recipe


@ALL
def test_a_recipe_takes_names(recipe: Recipe, tmp_path: Path) -> None:
    names = {
        "name": "lung",
        "sites": ["North", "South"],
        "address": "fed.example.org:1",
        "labels": ['"a" \\', "b\x7fé"],
    }
    text = recipe.filled(**names)  # type: ignore[arg-type]
    config = loaded(text, tmp_path)
    assert config.federation.name == "lung"
    assert config.federation.sites == names["sites"]
    assert config.server.address == names["address"]
    assert config.task.labels == names["labels"]
    # Nothing else has changed.
    assert len(text.splitlines()) == len(recipe.text.splitlines())
    changed = [new for old, new in zip(recipe.text.splitlines(), text.splitlines(), strict=True) if old != new]
    assert [line.partition(" = ")[0] for line in changed] == ["name", "sites", "address", "labels"]
    assert recipe.filled() == recipe.text


def test_a_recipe_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="no recipe is called 'longmill'") as caught:
        find_recipe("longmill")
    assert caught.value.remedy == "did you mean 'longmil'?"


def test_commented_settings_load_too(tmp_path: Path) -> None:
    """What a recipe offers as a comment is a setting that exists."""
    for recipe in recipes():
        offered = re.sub(r"^# (\[\w+\]|\w+ = .*)$", r"\1", recipe.text, flags=re.MULTILINE)
        assert offered != recipe.text
        loaded(offered, tmp_path)


@pytest.mark.parametrize("name", [name for name in ORDER if name != "vib"])
def test_a_recipe_trains(name: str, tmp_path: Path) -> None:
    """One round over two hospitals with drawn bags; all else as the file has it."""
    text = find_recipe(name).filled(name="test", sites=NAMES, address="localhost:1")
    config = check_models(loaded(text.replace("rounds = 20", "rounds = 1"), tmp_path))
    for index, site in enumerate(NAMES):
        folder = tmp_path / site
        (folder / "features").mkdir(parents=True)
        (folder / "manifest.csv").write_text(manifest(config, 10))
        draw_bags(config, folder / "features", 10, range(10), index)
        site_toml = f'[site]\nname = "{site}"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n'
        # B has no table.
        (folder / "site.toml").write_text(site_toml + (CLINICAL if config.clinical and site == "A" else ""))
        rows = [f"patient-{number:02d},{50 + number},{'positive' if number % 2 else ''}" for number in range(1, 11)]
        (folder / "clinical.csv").write_text("\n".join(["patient_id,age,er", *rows, ""]))
    events: list[str] = []
    log = EventLog(None, lambda event: events.append(event.kind))
    summary = coordinate(config, "run", tmp_path / "run", Sites(tmp_path, NAMES), log, threading.Event())
    assert summary["best_round"] in (0, 1)
    assert set(summary["test"]) == set(NAMES)
    assert "site_refused" not in events
    assert events.count("round_finished") == 1


def test_the_pipeline_of_vib_fits_together(tmp_path: Path) -> None:
    """Its stages are checked as the coordinator does; with an encoder that comes with its weights.

    A pipeline from slides to the last model takes a minute: tests/system/test_pipeline.py runs one.
    """
    text = find_recipe("vib").text
    for old, new in (("resnet50-layer4", "tiny-resnet"), ("width = 2048", "width = 128"), ('weights = "', '# "')):
        assert old in text
        text = text.replace(old, new)
    config = check_models(loaded(text, tmp_path))
    assert [stage.kind for stage in config.stage] == ["select", "fine-tune", "encode", "train"]


def test_its_weights_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"weights/resnet50\.pth: no such file of weights"):
        check_models(loaded(find_recipe("vib").text, tmp_path))
