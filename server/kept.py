"""Read back what a coordinator wrote down, after it was killed or stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fedpath.core.errors import DataError

REMEDY = "put the folder back as it was, or begin a new run with --new"
T = TypeVar("T")


def read_kept(path: Path, parse: Callable[[str], T]) -> T | None:
    """Return what is in a file, or None where nothing has been written down yet.

    Args:
        path: the file.
        parse: raises ValueError for what it cannot use.

    Raises:
        DataError: the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        return parse(path.read_text())
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}", remedy=REMEDY) from None
