"""Migrations, and every way in which the database cannot be used: named, with a remedy, without a password."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from fedpath.core.config import FederationConfig
from fedpath.core.errors import ConfigError, DataError
from fedpath.server.folder import settings_of_run
from fedpath.server.registry import Registry, RegistryAwayError, database
from fedpath.server.registry.database import DATABASE_FILE, URL_VARIABLE, connected, locate, open_database, printable
from fedpath.server.registry.index import new_row
from fedpath.server.registry.migrate import VERSION_TABLE, migrate
from fedpath.server.registry.tables import Base

Make = Callable[..., FederationConfig]


def test_the_migrations_make_the_tables_that_the_code_knows(tmp_path: Path) -> None:
    engine = open_database(locate(tmp_path))
    migrate(engine)
    with connected(engine) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, Base.metadata) == []


def test_an_older_database_is_copied_and_upgraded(tmp_path: Path, make_config: Make) -> None:
    engine = open_database(locate(tmp_path))
    assert migrate(engine, to="0001") is None
    with connected(engine, writes=True) as connection:
        connection.exec_driver_sql(
            "INSERT INTO runs (federation, run, state, submitted, config, model, rounds, done, doing, error, remedy, "
            "refused) VALUES ('test', 'old', 'finished', '2026-01-01 00:00:00', '{}', 'acmil', 3, 3, '', '', '', '{}')"
        )
    engine.dispose()
    registry = Registry.open(tmp_path)
    assert registry.upgraded_from == "0001"
    (run,) = registry.runs()
    assert (run.run, run.priority, run.after) == ("old", 0, None)
    with closing(sqlite3.connect(tmp_path / f"{DATABASE_FILE}.0001")) as copy:
        assert copy.execute("SELECT run FROM runs").fetchall() == [("old",)]
        assert "priority" not in [row[1] for row in copy.execute("PRAGMA table_info(runs)")]
    assert Registry.open(tmp_path).upgraded_from is None


def test_a_database_of_a_newer_fedpath_is_refused(tmp_path: Path) -> None:
    Registry.open(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as newer:
        newer.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        newer.commit()
    with pytest.raises(DataError, match=r"newer fedpath \(registry version 9999") as caught:
        Registry.open(tmp_path)
    assert str(tmp_path / DATABASE_FILE) in caught.value.message


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match="is damaged"):
        Registry.open(tmp_path)


def test_a_locked_database(tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_S", 0.1)
    registry = Registry.open(tmp_path)
    with closing(sqlite3.connect(tmp_path / DATABASE_FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryAwayError, match="another process has held it"):
            registry.add(new_row(make_config(), "one", folder=None))
        assert registry.runs() == []  # reading is not in its way
    assert registry.add(new_row(make_config(), "one", folder=None))


def test_a_read_only_database(tmp_path: Path, make_config: Make) -> None:
    registry = Registry.open(tmp_path)
    with connected(registry._engine) as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")  # rights do not stop root
    with pytest.raises(RegistryAwayError, match="cannot be written to"):
        registry.add(new_row(make_config(), "one", folder=None))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Registry.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="which registry"):
        Registry.open(None)


@pytest.mark.parametrize("url", ["nonsense:secret", "mysql://u:secret@h/d", "postgresql://u:secret@h:port/d"])
def test_an_unusable_url_is_told_without_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, url)
    with pytest.raises(ConfigError) as caught:
        Registry.open(None)
    assert URL_VARIABLE in caught.value.message
    assert "secret" not in str(caught.value)


def test_a_password_is_not_printed_nor_kept(make_config: Make) -> None:
    server = {"address": "localhost:1", "registry": "postgresql://me:secret@db.example:5432/fedpath?sslmode=require"}
    config = make_config(server=server)
    assert config.server.registry is not None
    url = locate(None, config.server.registry.get_secret_value())
    assert printable(url) == "postgresql+psycopg://me@db.example:5432/fedpath?sslmode=require"
    assert "secret" not in repr(config)
    assert "registry" not in settings_of_run(config)["server"]


def test_two_who_open_it_first_at_once_make_it_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: Registry.open(tmp_path), range(4)))
    assert [registry.runs() for registry in opened] == [[]] * 4
