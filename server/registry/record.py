"""`state.json` in a run's folder: what the registry says of the run, so that a lost registry can be made again."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fedpath.core.config.loading import Section
from fedpath.core.files import write_json
from fedpath.server.kept import read_kept
from fedpath.server.registry.tables import Run, RunState

STATE_FILE = "state.json"
When = Annotated[datetime, Field(strict=False)]


class Record(Section):
    """What is not in the other files of a run."""

    state: RunState
    revision: int = 0
    label: str | None = None
    priority: int = 0
    after: str | None = None
    weights: str | None = None
    submitted: When
    started: When | None = None
    ended: When | None = None
    error: str = ""
    remedy: str = ""
    exit_code: int | None = None

    @classmethod
    def of(cls, run: Run) -> "Record":
        """Return what is to be kept of a run."""
        return cls.model_validate({name: getattr(run, name) for name in cls.model_fields})

    def values(self) -> dict[str, Any]:
        """Return the columns of `Run` that it holds."""
        return {name: getattr(self, name) for name in type(self).model_fields}


def write_record(run: Run, folder: Path) -> None:
    """Keep what the registry says of a run, where that is not what is kept already."""
    record = Record.of(run)
    if read_kept(folder / STATE_FILE, Record.model_validate_json) != record:
        write_json(folder / STATE_FILE, record.model_dump(mode="json"))


def read_record(folder: Path) -> Record | None:
    """Return what is kept; None for a run of a fedpath without a registry.

    Raises:
        DataError: the file is damaged.
    """
    return read_kept(folder / STATE_FILE, Record.model_validate_json)


def now() -> datetime:
    """Return this moment, as the registry keeps moments."""
    return datetime.now(UTC)
