"""The files of a page, as they are in the package: styles and scripts. No other file can be asked for."""

from functools import cache
from importlib.resources import files

ASSETS = "/assets/"
_KINDS = {".css": b"text/css; charset=utf-8", ".js": b"text/javascript; charset=utf-8", ".svg": b"image/svg+xml"}
_SHARED = "fedpath.core.page"


def shared(name: str) -> bytes:
    """Return a file that both pages use."""
    return _read(_SHARED, name)


def page_of(package: str) -> bytes:
    """Return the one document of a role's page."""
    return _read(package, "index.html")


def asset(package: str, name: str) -> tuple[bytes, bytes] | None:
    """Return a style or script by its name, and its type; None where there is none.

    Args:
        package: of the role's page; what both share is found as well.
        name: of the file.
    """
    kind = next((kind for suffix, kind in _KINDS.items() if name.endswith(suffix)), None)
    for where in (package, _SHARED):
        if kind is not None and name in _names(where):
            return _read(where, name), kind
    return None


@cache
def _names(package: str) -> frozenset[str]:
    return frozenset(entry.name for entry in (files(package) / "static").iterdir())


@cache
def _read(package: str, name: str) -> bytes:
    return (files(package) / "static" / name).read_bytes()
