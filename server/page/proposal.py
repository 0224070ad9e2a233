"""A run that somebody asks for on the page: what the form begins with, and the same way into the queue as
`fedpath run submit`.

The form holds a federation.toml. It begins with a recipe into which this federation's facts are put (its name,
hospitals, address, labels, features), or with the coordinator's own file; what is sent may be any text.
"""

import re
from pathlib import Path
from typing import Any

from fedpath.core.config import FederationConfig, federation_of
from fedpath.core.errors import ConfigError
from fedpath.core.recipes import Recipe, recipes
from fedpath.core.recipes import toml as written
from fedpath.server.registry import Registry, Run
from fedpath.server.registry.requests import submit
from fedpath.server.runs import RUNS_FOLDER
from fedpath.server.stages import check_models

SOURCE = "the form's federation.toml"
_LONGEST_NAME = 100


def choices(config: FederationConfig, own: Path | None) -> list[dict[str, str]]:
    """Return what the form can begin with: the coordinator's own file, if it can be read, then the recipes."""
    found = [
        {"name": recipe.name, "title": recipe.title, "what": recipe.summary, "toml": fitted(recipe, config)}
        for recipe in recipes()
    ]
    if own is not None and own.is_file():
        what = "The federation.toml that this coordinator was started with. Models, training and stages may be changed."
        text, url = _without_url(own.read_text(encoding="utf-8", errors="replace")), config.server.registry
        if url is None or url.get_secret_value() not in text:  # however it is written: it may hold a password
            found.insert(0, {"name": "", "title": "This federation's own file", "what": what, "toml": text})
    return found


def fitted(recipe: Recipe, config: FederationConfig) -> str:
    """Return a recipe with a federation's facts in the place of its examples."""
    federation = config.federation
    text = recipe.filled(
        name=federation.name,
        sites=federation.sites,
        address=config.server.address,
        labels=config.task.labels,
    )
    facts = config.features.model_dump(exclude_none=True)
    lines = [f"{key} = {written(value) if isinstance(value, str) else value}" for key, value in facts.items()]
    return re.sub(
        r"^\[features\]\n(?:(?!\s*(?:\[|#|$)).*\n)*",
        lambda _: "[features]\n" + "\n".join(lines) + "\n",
        text,
        count=1,
        flags=re.MULTILINE,
    )


def _without_url(text: str) -> str:
    """Return a federation.toml without the registry's URL, which may hold a password and is the coordinator's own."""
    return re.sub(r"^\s*registry\s*=.*\n?", "", text, flags=re.MULTILINE)


def examined(content: dict[str, Any], folder: Path) -> FederationConfig:
    """Return the configuration that a form holds, after the checks of `fedpath run submit`.

    Args:
        content: of the form.
        folder: that of the coordinator's federation.toml; relative paths begin there.

    Raises:
        ConfigError: the text is not the federation.toml of a run; names the key and the remedy.
    """
    text = content.get("toml")
    if not isinstance(text, str) or not text.strip():
        raise ConfigError("the form holds no federation.toml", remedy="choose a recipe, or paste a file")
    return check_models(federation_of(text, folder / SOURCE))


def submitted(registry: Registry, config: FederationConfig, content: dict[str, Any], state: Path) -> Run:
    """Put the run of a form into the queue.

    Raises:
        ConfigError: it is of another federation or coordinator, or a field of the form cannot be used.
    """
    label = _line(content, "name") or None
    if label is not None and len(label) > _LONGEST_NAME:
        raise ConfigError(f"the name is longer than {_LONGEST_NAME} characters", remedy="choose a shorter one")
    priority = content.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > 10**6:
        raise ConfigError(f"priority {priority!r} is no whole number", remedy="leave it at 0")
    after = _line(content, "after")
    return submit(
        registry,
        config,
        state / RUNS_FOLDER,
        label=label,
        priority=priority,
        after=registry.find(after) if after else None,
    )


def _line(content: dict[str, Any], key: str) -> str:
    value = content.get(key, "")
    if not isinstance(value, str) or not value.isprintable():
        raise ConfigError(f"'{key}' is no line of text", remedy="write it again")
    return value.strip()
