"""Bring a registry's database to the version that this fedpath knows, once, whoever opens it first.

A SQLite file is copied before it is changed: `registry.db.0001` is the file as version 0001 left it. Of PostgreSQL the
operator makes copies (`pg_dump`). A database of a newer fedpath is not touched.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from fedpath.core.errors import DataError
from fedpath.server.registry.database import connected, printable

VERSION_TABLE = "fedpath_registry_version"
_LOCK = 0x6665_6470  # "fedp": any number that nobody else locks


def migrate(engine: Engine, to: str | None = None) -> str | None:
    """Upgrade the database where that is needed.

    Args:
        engine: of the database.
        to: the version to stop at, for tests; the newest by default.

    Returns:
        The version that it had, where it was upgraded; None where it is new or was current.

    Raises:
        DataError: it is of a newer fedpath.
        RegistryAwayError: it cannot be used now.
    """
    config = Config(attributes={"version_table": VERSION_TABLE})
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    head = to or script.get_current_head()
    with connected(engine) as connection:
        if _version(connection) == head:
            return None
    with connected(engine, writes=True) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        found = _version(connection)  # once more: somebody else may have been first
        if found == head:
            return None
        known = {revision.revision for revision in script.walk_revisions()}
        if found is not None and found not in known:
            raise DataError(
                f"{printable(engine.url)}: is of a newer fedpath (registry version {found}, this one knows {head})",
                remedy="run that fedpath, or put back the copy that it made beside the file before it changed it",
            )
        if found is not None and engine.url.get_backend_name() == "sqlite":
            _copy(Path(engine.url.database or ""), found)
        config.attributes["connection"] = connection
        command.upgrade(config, to or "head")
    return found


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _copy(path: Path, version: str) -> None:
    """Copy a database of SQLite, with what is in its write-ahead log."""
    target = path.with_name(f"{path.name}.{version}")
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
