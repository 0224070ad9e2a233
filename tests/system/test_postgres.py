"""The registry in a real PostgreSQL: the same as in SQLite, and every way in which it cannot be used."""

import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from command import fedpath
from federation import Federation
from postgres import PASSWORD, Postgres, postgres
from sqlalchemy import text

from fedpath.core.config import FederationConfig
from fedpath.core.errors import ConfigError, DataError
from fedpath.server.registry import Registry, RegistryAwayError
from fedpath.server.registry.database import DATABASE_FILE, POINTER_FILE, URL_VARIABLE, connected
from fedpath.server.registry.index import new_row
from fedpath.server.registry.migrate import VERSION_TABLE
from fedpath.server.registry.tables import Base

NEEDED = {
    "federation": {"name": "test", "sites": ["A"]},
    "server": {"address": "localhost:1"},
    "task": {"labels": ["normal", "tumour"]},
    "features": {"encoder": "noise", "width": 8},
}
pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def url(cluster: Postgres, request: pytest.FixtureRequest) -> str:
    """A database of this test's own."""
    import psycopg

    name = request.node.name.partition("[")[0][:60]
    with psycopg.connect(cluster.url().replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
    return cluster.url(database=name)


def test_the_migrations_make_the_tables_that_the_code_knows(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:  # whoever is first makes them, once
        registry, *_ = pool.map(lambda _: Registry.open(None, url), range(4))
    with connected(registry._engine) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, Base.metadata) == []
    with connected(registry._engine, writes=True) as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(DataError, match=r"newer fedpath \(registry version 9999"):
        Registry.open(None, url)


def test_what_cannot_be_used_is_named_without_its_password(cluster: Postgres) -> None:
    refused = [
        (cluster.url(password="wrong-one"), "refuses this user: password authentication failed"),
        (cluster.url(database="nowhere"), 'database "nowhere" does not exist'),
        (cluster.url().replace(str(cluster.port), "1"), "cannot be used: .*(refused|failed)"),
    ]
    for url, message in refused:
        with pytest.raises(RegistryAwayError, match=message) as caught:
            Registry.open(None, url)
        assert PASSWORD not in str(caught.value)
        assert "wrong-one" not in str(caught.value)
        assert len(caught.value.message.splitlines()) == 1


def test_a_user_who_may_only_read_is_told_so(cluster: Postgres, url: str) -> None:
    Registry.open(None, url).close()
    registry = Registry.open(None, url + "?options=-cdefault_transaction_read_only%3Don")
    assert registry.runs() == []
    with pytest.raises(RegistryAwayError, match="cannot be written to"):
        registry.add(new_row(FederationConfig.model_validate(NEEDED), "one", folder=None))


def test_a_queue_in_postgres_outlives_its_database(
    federation: Federation, cluster: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitted by URL alone; PostgreSQL ends in the middle: the run goes on, and the registry catches up later."""
    monkeypatch.setenv(URL_VARIABLE, url)
    federation.configure(rounds=4, training="local_epochs = 3")
    submitted = fedpath("run", "submit", "--config", federation.toml, "--json")
    assert submitted.code == 0, submitted.err
    run = json.loads(submitted.out)["run"]
    federation.start("server", ["server", "serve", "--config", federation.toml, "--dir", federation.state])
    for site in federation.sites:
        federation.start(site, [*federation.join_arguments(site), "--stay"])
    federation.wait_for_output("server", "round 1: counted A, B, C")
    cluster.stop()
    federation.wait_for_output("server", "runs go on, the registry is written when it is back")
    federation.wait_for_output("server", f"{run}: is finished")
    cluster.start()
    federation.wait_for_output("server", "the registry is back")
    watched = fedpath("run", "watch", "latest")
    assert watched.code == 0, watched.err
    assert f"run {run} is finished" in watched.out
    shown = json.loads(fedpath("run", "show", run, "--json").out)
    assert [round_["round"] for round_ in shown["round"]] == [1, 2, 3, 4]

    # The database is found again by the folder, and its password is nowhere below it.
    assert not (federation.state / DATABASE_FILE).exists()
    assert "fedpath@127.0.0.1" in (federation.state / POINTER_FILE).read_text()
    federation.signal("server", signal.SIGINT)
    assert federation.wait("server") == 130
    for path in federation.folder.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path
    monkeypatch.delenv(URL_VARIABLE)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert run in fedpath("run", "list", "--dir", federation.state).out

    # An empty database is filled from the folders.
    monkeypatch.setenv(URL_VARIABLE, url)
    registry = Registry.open(None)
    with connected(registry._engine, writes=True) as connection:
        connection.execute(text("DELETE FROM runs"))
    assert run in fedpath("run", "list", "--dir", federation.state).out
    exported = fedpath("run", "export", run, "--dir", federation.state, "--to", federation.folder / "out.zip")
    assert exported.code == 0, exported.err


def test_a_folder_that_is_gone(tmp_path: Path, url: str) -> None:
    shutil.rmtree(tmp_path)
    with pytest.raises(ConfigError):
        Registry.open(tmp_path)
