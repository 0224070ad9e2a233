"""Recipes: commented federation.toml files that work, one a method, to begin with.

A recipe is a TOML file beside this module. Its first comment line is its title, the paragraph below it its summary.
What differs from one federation to the next (its name, hospitals, address, labels) stands in the file as an example,
and ``Recipe.filled`` puts other values there; everything else, comments included, stays as it is written.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

from fedpath.core.errors import ConfigError, did_you_mean

ORDER = ("acmil", "longmil", "bd", "vib")
"""In which they are listed: what most begin with comes first."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A federation.toml to begin with."""

    name: str
    title: str
    """One line."""
    summary: str
    """What it is for, in two or three sentences."""
    text: str
    """The file."""

    def filled(
        self,
        *,
        name: str | None = None,
        sites: Sequence[str] | None = None,
        address: str | None = None,
        labels: Sequence[str] | None = None,
    ) -> str:
        """Return the file with these values in place of its examples.

        The values are written as they are given: whether a loader accepts them is for it to say.
        """
        text = self.text
        for table, key, value in (
            ("federation", "name", name),
            ("federation", "sites", sites),
            ("server", "address", address),
            ("task", "labels", labels),
        ):
            if value is not None:
                text = _replaced(text, table, key, toml(value))
        return text


def recipes() -> list[Recipe]:
    """Return all recipes."""
    return [_read(name) for name in ORDER]


def find_recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in ORDER:
        remedy = did_you_mean(name, ORDER, f"use one of: {', '.join(ORDER)}")
        raise ConfigError(f"no recipe is called '{name}'", remedy=remedy)
    return _read(name)


def toml(value: str | Sequence[str]) -> str:
    """Return a text, or a list of texts, as TOML writes it."""
    if isinstance(value, str):
        # Basic strings of TOML are JSON's, but for a character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(map(toml, value))}]"


def _read(name: str) -> Recipe:
    text = (files("fedpath.core.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    title, summary = _paragraphs(text)[:2]
    return Recipe(name, title, summary, text)


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs of the comment that a file begins with, each as one line."""

    def comment() -> Iterator[str]:
        for line in text.splitlines():
            if not line.startswith("#"):
                return
            yield line.removeprefix("#").strip()

    return " ".join(line or "\n" for line in comment()).replace(" \n ", "\n").split("\n")


def _replaced(text: str, table: str, key: str, value: str) -> str:
    """Return a file with another value of one key, which stands on one line."""
    found = re.search(rf"^\[{table}\]\n(?:(?!\[).*\n)*?{key} = (.*)$", text, flags=re.MULTILINE)
    assert found is not None, f"[{table}] {key} is in every recipe"
    return text[: found.start(1)] + value + text[found.end(1) :]
