"""What is written: a file that was not there, and that its loader takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fedpath.core.errors import ConfigError
from fedpath.core.files import write_text


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written, from which answers, and what comes next."""

    path: Path
    answers: Mapping[str, object]
    next_steps: Sequence[str]


def check_new(path: Path) -> None:
    """Check that a file is not there yet.

    Raises:
        ConfigError: it is; what somebody wrote is never replaced.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already", remedy="name another file with --out, or move that one away")


def write_new(path: Path, text: str, load: Callable[[Path], object] | None = None) -> None:
    """Write a file that is not there yet.

    Args:
        path: of the file.
        text: its content.
        load: reads it as those will who use it; what it refuses is not written.

    Raises:
        ConfigError: the file exists, or its loader does not take it.
    """
    check_new(path)
    if load is not None:
        with TemporaryDirectory() as folder:
            trial = Path(folder) / path.name
            trial.write_text(text, encoding="utf-8")
            try:
                load(trial)
            except ConfigError as error:
                raise ConfigError(error.message.replace(str(trial), str(path)), remedy=error.remedy) from None
    write_text(path, text)
