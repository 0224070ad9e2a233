"""What the shell completes beyond commands and options: names that are cheap to find. Nothing heavy is imported here.

A completion never fails: what cannot be read has no names.
"""

import tomllib
from pathlib import Path

import click

_LATEST = "latest"


def recipe_names(incomplete: str) -> list[str]:
    """Names of recipes."""
    from fedpath.core.recipes import ORDER

    return [name for name in ORDER if name.startswith(incomplete)]


def run_names(ctx: click.Context, incomplete: str) -> list[str]:
    """Names of the runs in the coordinator's folder that --dir names, the latest first."""
    folder = ctx.params.get("dir")
    runs = _folders(Path(folder) / "runs") if folder else []
    return [name for name in [_LATEST, *reversed(runs)] if name.startswith(incomplete)]


def site_names(ctx: click.Context, incomplete: str) -> list[str]:
    """The hospital's own name: of the site.toml or the kit that the command line names."""
    found = []
    for key, file, table in (("config", "", "site"), ("kit", "kit.toml", "")):
        if given := ctx.params.get(key):
            content = _toml(Path(given) / file if file else Path(given))
            name = content.get(table, {}).get("name") if table else content.get("site")
            found += [name] if isinstance(name, str) else []
    return [name for name in dict.fromkeys(found) if name.startswith(incomplete)]


def _folders(path: Path) -> list[str]:
    try:
        return sorted(inner.name for inner in path.iterdir() if inner.is_dir())
    except OSError:
        return []


def _toml(path: Path) -> dict[str, dict[str, object]]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
