"""The registry's database: where it is, how it is opened, and what its failures mean in words.

A URL may hold a password. It is never printed, logged or written down: `printable` is what people see.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, NoSuchModuleError, OperationalError

from fedpath.core.errors import ConfigError, DataError
from fedpath.core.files import write_json
from fedpath.server.kept import read_kept

DATABASE_FILE, POINTER_FILE = "registry.db", "registry.json"
URL_VARIABLE = "FEDPATH_REGISTRY_URL"
_BUSY_S = 10
_CONNECT_S = 10
_WRITES = "fedpath_writes"


class RegistryAwayError(ConfigError):
    """The database cannot be used now: unreachable, locked, read-only, no space. A run that goes on can wait for it."""


def locate(state: Path | None, url: str | None = None) -> URL:
    """Return where the registry is: the environment's word, then ``url``, then a SQLite file in ``state``.

    Args:
        state: the coordinator's folder, where it is on this machine.
        url: of federation.toml.

    Raises:
        ConfigError: it is no URL, or of a database that is not supported, or there is neither a URL nor a folder.
    """
    text = os.environ.get(URL_VARIABLE) or url or (None if state is None else _pointer(state))
    if text is None:
        if state is None:
            raise ConfigError(
                "which registry?", remedy=f"name the coordinator's folder with --dir, or set {URL_VARIABLE}"
            )
        return URL.create("sqlite+pysqlite", database=str(state.absolute() / DATABASE_FILE))
    where = URL_VARIABLE if os.environ.get(URL_VARIABLE) else "server.registry" if url else f"{state}/{POINTER_FILE}"
    remedy = "write it as postgresql+psycopg://USER@HOST:PORT/DATABASE"
    try:
        found = make_url(text)
    except (ArgumentError, ValueError):  # its text could hold a password
        raise ConfigError(f"{where}: not a URL of a database", remedy=remedy) from None
    if found.drivername in ("postgresql", "postgres"):
        found = found.set(drivername="postgresql+psycopg")
    if found.drivername not in ("postgresql+psycopg", "sqlite", "sqlite+pysqlite"):
        raise ConfigError(f"{where}: '{found.drivername}' is not supported", remedy=remedy)
    return found


def point_to(url: URL, state: Path) -> None:
    """Write into the coordinator's folder where its registry is, where that is elsewhere. The password stays out."""
    path = state / POINTER_FILE
    if url.get_backend_name() == "sqlite" and url.database == str(state.absolute() / DATABASE_FILE):
        path.unlink(missing_ok=True)
    elif _pointer(state) != (text := _without_password(url)):
        write_json(path, {"url": text})


def _pointer(state: Path) -> str | None:
    def parse(text: str) -> str:
        return str(json.loads(text)["url"])

    return read_kept(state / POINTER_FILE, parse)


def printable(url: URL) -> str:
    """Return how people see a database: a file, or a URL without its password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return _without_password(url)


def _without_password(url: URL) -> str:
    query = {name: value for name, value in url.query.items() if "password" not in name}
    return URL.create(
        url.drivername, username=url.username, host=url.host, port=url.port, database=url.database, query=query
    ).render_as_string()


def open_database(url: URL) -> Engine:
    """Return the engine of a registry; nothing is read or written yet.

    Raises:
        ConfigError: the driver of PostgreSQL is not installed.
    """
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": _BUSY_S})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        import psycopg  # noqa: F401 - so that its absence is told by its name
    except ImportError:
        raise ConfigError(
            f"{printable(url)}: the driver of PostgreSQL is not installed", remedy="pip install 'fedpath[postgres]'"
        ) from None
    try:
        return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": _CONNECT_S})
    except NoSuchModuleError as error:
        raise ConfigError(f"{printable(url)}: {error}", remedy="pip install 'fedpath[postgres]'") from None


@contextmanager
def connected(engine: Engine, *, writes: bool = False) -> Iterator[Connection]:
    """Yield a connection in a transaction that is committed at the end.

    Args:
        engine: of `open_database`.
        writes: take SQLite's one place for a writer at once: it is waited for there, and not failed on later.

    Raises:
        RegistryAwayError: the database cannot be used now.
        DataError: its file is damaged.
    """
    with explained(engine.url), engine.connect() as opened:
        connection = opened.execution_options(**{_WRITES: writes})
        with connection.begin():
            yield connection


@contextmanager
def explained(url: URL) -> Iterator[None]:
    """Turn the database's failures into errors that say where and what to do."""
    where = printable(url)
    try:
        yield
    except (
        OperationalError,
        InterfaceError,
        sqlite3.OperationalError,
    ) as error:
        raise _away(where, _words(error)) from None
    except (DatabaseError, sqlite3.DatabaseError) as error:
        said = _words(error)
        if "not a database" in said or "malformed" in said:
            raise DataError(
                f"{where}: is damaged: {said}",
                remedy="move it away, or put a copy back; it is made again from the runs' folders",
            ) from None
        if "permission denied" in said or "readonly" in said or "read-only" in said:
            raise _away(where, said) from None
        raise


def _away(where: str, said: str) -> RegistryAwayError:
    match said:
        case _ if "is locked" in said:
            return RegistryAwayError(
                f"{where}: another process has held it for {_BUSY_S} s", remedy="try again; end what holds it"
            )
        case _ if "readonly" in said or "read-only" in said or "permission denied" in said:
            return RegistryAwayError(
                f"{where}: cannot be written to: {said}", remedy="check its rights and its folder's"
            )
        case _ if "unable to open" in said:
            return RegistryAwayError(
                f"{where}: cannot be opened", remedy="check that the folder of --dir is there, and its rights"
            )
        case _ if "password" in said or "authentication" in said or "role" in said:
            return RegistryAwayError(
                f"{where}: refuses this user: {said}",
                remedy=f"correct user and password in {URL_VARIABLE}, or give the password in PGPASSWORD or ~/.pgpass",
            )
        case _ if "database" in said and "does not exist" in said:
            return RegistryAwayError(f"{where}: {said}", remedy="create it: createdb NAME")
        case _ if "full" in said or "No space" in said:
            return RegistryAwayError(f"{where}: its disk is full", remedy="make room")
        case _:
            return RegistryAwayError(f"{where}: cannot be used: {said}", remedy="check that it runs and can be reached")


def _words(error: DatabaseError | InterfaceError | sqlite3.DatabaseError) -> str:
    """Return the last line of what the database said that says something: drivers list what they tried before it."""
    lines = [line.strip() for line in str(getattr(error, "orig", error)).splitlines() if line.strip()]
    failed = [line for line in lines if "failed:" in line or "error" in line.lower()]
    chosen = (failed or lines or ["no reason given"])[-1]
    return chosen.rpartition("FATAL:")[2].strip() or chosen


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not guessed by the driver
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN")
