"""What a command prints: text for people or, with ``--json``, JSON for programs. One form for all commands.

With ``--json`` standard output holds nothing but JSON. A command that answers prints one document; a command that takes
its time prints one event a line, ``{"kind": …, "at": …, …}`` as in events.jsonl, the last of kind ``result``. An error
is one line of JSON on standard error, the last there, and the exit code is the same as without. What libraries print
goes to standard error: ``reserved`` sees to it.

On a terminal that can move its cursor progress is drawn, elsewhere it is told in lines: ``moves``. Colours are for rich
to decide, which knows NO_COLOR, FORCE_COLOR and TERM=dumb.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fedpath.core.events import Event

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
AsLines = Annotated[bool, typer.Option("--json", help="Print JSON for programs: an event a line, the result last.")]

RESULT = "result"
"""Kind of the last line of a command that prints events."""
_OPTION = "--json"
_DUMB = ("dumb", "unknown")


class _Reserved:
    """Where JSON goes while standard output is kept for it; None while it is not."""

    to: TextIO | None = None


def wanted(arguments: Sequence[str]) -> bool:
    """Return whether the command line asks for JSON; to be known before it is parsed, since that may fail."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return _OPTION in options


@contextmanager
def reserved() -> Iterator[None]:
    """Keep standard output for JSON: all else that is printed there goes to standard error."""
    before = _Reserved.to
    _Reserved.to = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _Reserved.to = before


def document(value: object) -> None:
    """Print the one JSON document of a command."""
    _write(_text(value, indent=2), _Reserved.to or sys.stdout)


def line(kind: str, **values: object) -> None:
    """Print an event as a line of JSON."""
    import time

    _write(_text({"kind": kind, "at": time.time()} | values), _Reserved.to or sys.stdout)


def event(happened: "Event") -> None:
    """Print an event of an ``EventLog`` as a line of JSON: a listener."""
    _write(_text({"kind": happened.kind, "at": happened.at} | happened.values), _Reserved.to or sys.stdout)


def result(**values: object) -> None:
    """Print the last line of a command that prints events."""
    line(RESULT, **values)


def error(message: str, remedy: str, code: int) -> None:
    """Say on standard error what went wrong and what to do about it."""
    if _Reserved.to is None:
        print(f"error: {message}\nremedy: {remedy}", file=sys.stderr)
    else:
        _write(_text({"error": {"message": message, "remedy": remedy, "exit_code": code}}), sys.stderr)


def note(text: str) -> None:
    """Say on standard error what is no error and not the answer either."""
    _write(text if _Reserved.to is None else _text({"note": text}), sys.stderr)


def console(*, stderr: bool = False, quiet: bool = False) -> "Console":
    """Return where text for people goes.

    Args:
        stderr: to standard error, so that results can be piped.
        quiet: nowhere, since the command prints JSON.
    """
    from rich.console import Console

    return Console(stderr=stderr, quiet=quiet, highlight=False)


def moves(console: "Console") -> bool:
    """Return whether a picture that moves makes sense: on a terminal that knows how to go back.

    FORCE_COLOR makes rich take a file for a terminal; colours are all that is meant by it.
    """
    return not console.quiet and console.file.isatty() and os.environ.get("TERM", "").lower() not in _DUMB


def _text(value: object, indent: int | None = None) -> str:
    import json

    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def plain(value: object) -> Any:
    """Return what JSON can hold: records as objects, paths and times as text, what is not finite as null."""
    import math
    from dataclasses import fields, is_dataclass
    from datetime import date
    from pathlib import PurePath

    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case PurePath():
            return str(value)
        case date():
            return value.isoformat()
        case dict():
            return {str(key): plain(inner) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(inner) for inner in value]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _write(text: str, to: TextIO) -> None:
    """Write a line, whole and at once: somebody may wait for it."""
    # A terminal or log of another encoding gets what it can show.
    to.write(text + "\n")
    to.flush()
