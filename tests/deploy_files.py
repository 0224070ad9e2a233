"""The files of deploy/ as tests read them: a Dockerfile by its stages, compose files with their variables filled in."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import typer
import yaml

from fedpath.cli.main import app

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "deploy" / "compose"
SYSTEMD = ROOT / "deploy" / "systemd"
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a Dockerfile."""

    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Instructions and what follows them."""

    def copied(self) -> list[str]:
        """Return what it takes from the folder of the build."""
        copies = [shlex.split(rest) for name, rest in self.lines if name == "COPY"]
        return [
            word
            for words in copies
            if not any(word.startswith("--from=") for word in words)
            for word in [word for word in words if not word.startswith("--")][:-1]
        ]


class Dockerfile:
    """A Dockerfile, read as far as these tests need it."""

    def __init__(self, text: str) -> None:
        joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
        self.arguments: dict[str, str] = {}
        self.stages: list[Stage] = []
        for line in filter(None, map(str.strip, joined.splitlines())):
            name, _, rest = line.partition(" ")
            if name == "FROM":
                base, stage = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
                self.stages.append(Stage(stage, base))
                continue
            if name == "ARG":
                key, _, value = rest.partition("=")
                self.arguments[key] = value
            if self.stages:
                self.stages[-1].lines.append((name, rest))

    def stage(self, name: str) -> Stage:
        """Return a stage by its name."""
        (found,) = (stage for stage in self.stages if stage.name == name)
        return found

    def lineage(self, name: str) -> list[tuple[str, str]]:
        """Return the instructions that an image is made by: those of its stage and of those it begins with."""
        names = {stage.name for stage in self.stages}
        stage = self.stage(name)
        return [*(self.lineage(stage.base) if stage.base in names else []), *stage.lines]

    def command(self, target: str) -> list[str]:
        """Return what follows the entry point."""
        return list(json.loads([rest for name, rest in self.lineage(target) if name == "CMD"][-1]))

    def health(self) -> list[str]:
        """Return the command of HEALTHCHECK, as compose writes it."""
        (rest,) = (rest for name, rest in self.stage("runtime").lines if name == "HEALTHCHECK")
        return ["CMD", *json.loads(rest.partition("CMD ")[2])]

    def environment(self, target: str) -> dict[str, str]:
        """Return the variables an image sets."""
        words = [word for name, rest in self.lineage(target) if name == "ENV" for word in shlex.split(rest)]
        return dict(word.split("=", 1) for word in words)


def compose(path: Path, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a compose file with its variables filled in, as Compose does it."""
    given = {"FEDPATH_SITE": "A"} | dict(variables or {})

    def value(found: re.Match[str]) -> str:
        name, how, rest = found.groups()
        if given.get(name):
            return given[name]
        assert how == "-", f"{path.name}: {name} must be set"
        return str(rest)

    def fill(node: Any) -> Any:
        match node:
            case str():
                return _VARIABLE.sub(value, node)
            case dict():
                return {key: fill(inner) for key, inner in node.items()}
            case list():
                return [fill(inner) for inner in node]
            case _:
                return node

    content: dict[str, Any] = fill(yaml.safe_load(path.read_text()))
    return content


def check_command(words: Sequence[str]) -> None:
    """Fail unless ``fedpath WORDS`` is a command with these options, and none is missing."""
    context = click.Context(typer.main.get_command(app), info_name="fedpath", help_option_names=["-h", "--help"])
    rest = list(words)
    while isinstance(context.command, click.Group):
        command = context.command.get_command(context, rest[0])
        assert command is not None, f"no command '{rest[0]}' under '{context.command_path}'"
        context, rest = click.Context(command, parent=context, info_name=rest[0]), rest[1:]
    if rest == ["--help"]:
        return
    with context.scope():
        context.command.make_context(context.info_name, rest, parent=context.parent)


class Unit:
    """A unit of systemd: settings with all their values, by section."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings: dict[str, list[str]] = {}
        for line in path.read_text().splitlines():
            if "=" in line and not line.startswith(("#", "[")):
                name, _, value = line.partition("=")
                self.settings.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> str:
        """Return a setting that is there once."""
        (value,) = self.settings[name]
        return value

    @cached_property
    def command(self) -> list[str]:
        """The words of ExecStart."""
        return shlex.split(self["ExecStart"])
