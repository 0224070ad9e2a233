"""Folders of an encode run: the slides in one, the lock on the other, and files that no longer count."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedpath.client.slides.outcome import Quarantined
from fedpath.client.slides.reader import SUFFIXES
from fedpath.core.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class FoundSlides:
    """What is in a folder of slides."""

    slides: list[Path]
    """In order of name."""
    doubled: list[Quarantined]
    """Those that share a name: which of them the manifest means nobody can know."""
    ignored: list[str]
    """Other files."""


def find_slides(slides: Path) -> FoundSlides:
    """Return what is in a folder, or a single slide.

    Raises:
        DataError: nothing there.
    """
    if slides.is_file():
        return FoundSlides([slides], [], [])
    if not slides.is_dir():
        raise DataError(f"{slides}: no such folder", remedy="name the folder with the slides")
    files = sorted(p for p in slides.rglob("*") if p.is_file() and not p.name.startswith("."))
    found = [p for p in files if p.suffix.lower() in SUFFIXES]
    # A MIRAX slide's own files lie in a folder of its name.
    parts = {p.with_suffix("") for p in found}
    ignored = [str(p.relative_to(slides)) for p in files if p not in set(found) and not parts.intersection(p.parents)]
    if not found:
        raise DataError(f"{slides}: no slides inside", remedy=f"known suffixes: {', '.join(sorted(SUFFIXES))}")
    by_name: dict[str, list[Path]] = {}
    for path in found:
        by_name.setdefault(path.stem, []).append(path)
    doubled = [
        Quarantined(
            name,
            str(paths[0]),
            f"{', '.join(map(str, paths))}: {len(paths)} slides of one name",
            "rename them: the name is the slide_id",
        )
        for name, paths in sorted(by_name.items())
        if len(paths) > 1
    ]
    return FoundSlides([by_name[name][0] for name in sorted(by_name) if len(by_name[name]) == 1], doubled, ignored)


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Hold the folder's lock; it ends with the process, however that ends.

    Raises:
        ConfigError: another run holds it, or the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".encode.lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"{out}: cannot be written to: {error.strerror}", remedy="choose another --out or change its permissions"
        ) from None
    with lock as file:
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
