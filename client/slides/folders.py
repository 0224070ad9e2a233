"""Folders of an encode run: the slides in one, the lock on the other, and files that no longer count."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedpath.client.slides.reader import SUFFIXES
from fedpath.core.errors import ConfigError, DataError


def find_slides(slides: Path) -> tuple[list[Path], list[str]]:
    """Return the slides in order of name, and other files.

    Raises:
        DataError: nothing there, or two slides of one name.
    """
    if slides.is_file():
        return [slides], []
    if not slides.is_dir():
        raise DataError(f"{slides}: no such folder", remedy="name the folder with the slides")
    files = sorted(p for p in slides.rglob("*") if p.is_file() and not p.name.startswith("."))
    found = [p for p in files if p.suffix.lower() in SUFFIXES]
    # A MIRAX slide's own files lie in a folder of its name.
    parts = {p.with_suffix("") for p in found}
    ignored = [str(p.relative_to(slides)) for p in files if p not in set(found) and not parts.intersection(p.parents)]
    if not found:
        raise DataError(f"{slides}: no slides inside", remedy=f"known suffixes: {', '.join(sorted(SUFFIXES))}")
    by_name: dict[str, Path] = {}
    for path in found:
        if path.stem in by_name:
            raise DataError(
                f"{path}: has the name of {by_name[path.stem]}", remedy="rename one: the name is the slide_id"
            )
        by_name[path.stem] = path
    return [by_name[name] for name in sorted(by_name)], ignored


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Hold the folder's lock; it ends with the process, however that ends.

    Raises:
        ConfigError: another run holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".encode.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{out}: another run is encoding into it", remedy="wait for it or choose another --out"
            ) from None
        yield


def set_aside(target: Path, remedy: str) -> str:
    """Move an earlier feature file of a slide that now fails out of training's sight; return the remedy to show."""
    if not target.exists():
        return remedy
    aside = target.with_suffix(".h5.outdated")
    target.replace(aside)
    return f"{remedy}; its earlier feature file is now {aside.name}"
