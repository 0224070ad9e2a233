"""What the registry is asked and told. Every write is one transaction, and writing the same twice changes nothing."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fedpath.core.errors import ConfigError, did_you_mean
from fedpath.server.records import RoundManifest
from fedpath.server.registry.database import connected, locate, open_database, printable
from fedpath.server.registry.migrate import migrate
from fedpath.server.registry.tables import Base, Coordinator, Part, Round, Run, RunState, Site

LATEST = "latest"
_HERE_S = 15.0
"""A coordinator that was not seen for so long is not there."""


@dataclass(frozen=True, slots=True)
class History:
    """The rounds of a run, and who took part in each."""

    rounds: list[Round]
    parts: list[Part]


class Registry:
    """Of one database; see `open`.

    Args:
        url: of the database.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self._engine = open_database(url)
        self.where = printable(url)
        """For people: without a password."""
        self.upgraded_from = migrate(self._engine)
        """The version of the database before this fedpath opened it, where that was an older one."""

    @classmethod
    def open(cls, state: Path | None, url: str | None = None, *, make: bool = False) -> Self:
        """Open the registry of a coordinator, and make or upgrade its tables where that is needed.

        Args:
            state: the coordinator's folder, where it is on this machine.
            url: of federation.toml.
            make: make the folder where it is not there.

        Raises:
            ConfigError: it cannot be found, reached or written to.
            DataError: it is damaged, or of a newer fedpath.
        """
        found = locate(state, url)
        if found.get_backend_name() == "sqlite" and found.database:
            folder = Path(found.database).parent
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            elif not folder.is_dir():
                raise ConfigError(f"{folder}: no such folder", remedy="name the coordinator's folder with --dir")
        return cls(found)

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()

    @contextmanager
    def _session(self, *, writes: bool = False) -> Iterator[Session]:
        with connected(self._engine, writes=writes) as connection:
            session = Session(connection, expire_on_commit=False)
            with session:
                yield session
                session.flush()

    # --- runs ---------------------------------------------------------------------------------------------------------

    def add(self, run: Run) -> bool:
        """Add a run; False where the federation has one of this name already."""
        try:
            with self._session(writes=True) as session:
                session.add(run)
        except IntegrityError:
            return False
        return True

    def runs(self, federation: str | None = None, states: Collection[RunState] = ()) -> list[Run]:
        """Return runs in the order in which they were submitted."""
        query = select(Run).order_by(Run.submitted, Run.id)
        if federation is not None:
            query = query.where(Run.federation == federation)
        if states:
            query = query.where(Run.state.in_(states))
        with self._session() as session:
            return list(session.scalars(query))

    def count(self, federation: str) -> dict[str, int]:
        """Return how many runs a federation has in each state that any has."""
        query = select(Run.state, func.count()).where(Run.federation == federation).group_by(Run.state)
        with self._session() as session:
            return dict(session.execute(query).tuples().all())

    def federations(self) -> list[str]:
        """Return the federations that have runs or a coordinator here."""
        with self._session() as session:
            found = [*session.scalars(select(Run.federation)), *session.scalars(select(Coordinator.federation))]
        return sorted(set(found))

    def queue(self, federation: str) -> list[Run]:
        """Return the runs that are queued, the next one first."""
        waiting = self.runs(federation, ["queued"])
        # What has begun goes on before anything else begins.
        return sorted(waiting, key=lambda run: (run.started is None, -run.priority, run.submitted, run.id))

    def get(self, federation: str, name: str) -> Run | None:
        """Return the run of a name."""
        with self._session() as session:
            return session.scalar(select(Run).where(Run.federation == federation, Run.run == name))

    def find(self, word: str) -> Run:
        """Return the run that a user means: its name, its label, the beginning of its name, or "latest".

        Raises:
            ConfigError: there is none, or several.
        """
        runs = self.runs()
        if not runs:
            raise ConfigError(f"{self.where}: no run yet", remedy="submit one: fedpath run submit")
        if word == LATEST:
            return runs[-1]
        for found in (
            [run for run in runs if run.run == word],
            [run for run in runs if run.label == word],
            [run for run in runs if run.run.startswith(word)],
        ):
            if len(found) == 1:
                return found[0]
            if found:
                names = ", ".join(run.run for run in found[-5:])
                raise ConfigError(f"run '{word}': could be any of {len(found)}: … {names}", remedy="write more of it")
        known = [run.run for run in runs] + [run.label for run in runs if run.label]
        there = ", ".join(run.run for run in runs[-5:])
        raise ConfigError(
            f"run '{word}': there is none in {self.where}",
            remedy=did_you_mean(word, known, f"the last ones are: {there}"),
        )

    def move(self, run: Run, states: Collection[RunState], to: RunState, **values: Any) -> bool:
        """Change the state of a run, as `change`; that is a revision."""
        return self.change(run, states, state=to, revision=run.revision + 1, **values)

    def change(self, run: Run, states: Collection[RunState] = (), **values: Any) -> bool:
        """Change a run, and ``run`` with it; False where it is in none of ``states`` any more."""
        query = update(Run).where(Run.id == run.id)
        if states:
            query = query.where(Run.state.in_(states))
        with self._session(writes=True) as session:
            changed = session.connection().execute(query.values(**values)).rowcount == 1
        if changed:
            for name, value in values.items():
                setattr(run, name, value)
        return changed

    # --- rounds -------------------------------------------------------------------------------------------------------

    def keep_rounds(self, run: Run, stage: str, manifests: Sequence[RoundManifest]) -> None:
        """Keep rounds of a run, in the place of what was kept of them."""
        with self._session(writes=True) as session:
            # Of PostgreSQL: whoever else writes this run's rounds waits.
            session.execute(select(Run.id).where(Run.id == run.id).with_for_update())
            numbers = [manifest.round for manifest in manifests]
            for table in (Round, Part):
                which = (table.run_id == run.id, table.stage == stage, table.round.in_(numbers))
                session.execute(delete(table).where(*which))
            for manifest in manifests:
                session.add(_round(run.id, stage, manifest))
                session.add_all(_parts(run.id, stage, manifest))

    def forget_rounds(self, run: Run, stage: str, after: int) -> None:
        """Forget rounds that are to be done again."""
        with self._session(writes=True) as session:
            for table in (Round, Part):
                session.execute(delete(table).where(table.run_id == run.id, table.stage == stage, table.round > after))

    def kept_rounds(self, run: Run) -> dict[tuple[str, int], str]:
        """Return the rounds that are kept of a run, by stage and number, with the hashes of their models."""
        query = select(Round.stage, Round.round, Round.result).where(Round.run_id == run.id)
        with self._session() as session:
            return {(stage, number): result for stage, number, result in session.execute(query)}

    def history(self, run: Run) -> History:
        """Return the rounds of a run and who took part."""
        with self._session() as session:
            rounds = session.scalars(select(Round).where(Round.run_id == run.id).order_by(Round.stage, Round.round))
            parts = session.scalars(
                select(Part).where(Part.run_id == run.id).order_by(Part.stage, Part.round, Part.site)
            )
            return History(list(rounds), list(parts))

    # --- sites and coordinators ---------------------------------------------------------------------------------------

    def keep_sites(self, sites: Collection[Site]) -> None:
        """Keep how hospitals describe themselves."""
        self._merge(list(sites))

    def sites(self, federation: str) -> dict[str, Site]:
        """Return the hospitals of a federation that have ever described themselves."""
        with self._session() as session:
            found = session.scalars(select(Site).where(Site.federation == federation).order_by(Site.site))
            return {site.site: site for site in found}

    def keep_coordinator(self, coordinator: Coordinator) -> None:
        """Say that a coordinator serves the queue, and is there now."""
        self._merge([coordinator])

    def coordinator(self, federation: str) -> Coordinator | None:
        """Return the coordinator of a federation's queue, the last one there was."""
        with self._session() as session:
            return session.get(Coordinator, federation)

    def _merge(self, rows: Sequence[Base]) -> None:
        """Insert or change rows; where somebody else inserts the same at the same moment, change them."""
        try:
            with self._session(writes=True) as session:
                for row in rows:
                    session.merge(row)
        except IntegrityError:
            with self._session(writes=True) as session:
                for row in rows:
                    session.merge(row)

    def is_served(self, federation: str) -> bool:
        """Return whether a coordinator works through the queue now."""
        return federation in self.served()

    def served(self) -> list[str]:
        """Return the federations whose queues coordinators work through now."""
        with self._session() as session:
            rows = list(session.scalars(select(Coordinator)))
        return [row.federation for row in rows if (datetime.now(UTC) - row.seen).total_seconds() < _HERE_S]


def _round(run_id: int, stage: str, manifest: RoundManifest) -> Round:
    return Round(
        run_id=run_id,
        stage=stage,
        round=manifest.round,
        base=manifest.base,
        result=manifest.result,
        seconds=manifest.seconds,
        aggregation_s=manifest.aggregation_s,
        deadline_s=manifest.deadline_s,
        validation_auc=manifest.validation_auc,
        validation_loss=manifest.validation_loss,
        patients=manifest.patients,
    )


def _parts(run_id: int, stage: str, manifest: RoundManifest) -> list[Part]:
    return [
        Part(
            run_id=run_id,
            stage=stage,
            round=manifest.round,
            site=site,
            outcome=part.outcome,
            reason=part.reason,
            of_round=part.of_round,
            weight=part.weight,
            patients=part.patients,
            training_loss=part.training_loss,
            validation_auc=None if part.validation is None else part.validation.auc,
            seconds=part.seconds,
            sent_bytes=part.sent_bytes,
            received_bytes=part.received_bytes,
            sha256=part.sha256,
        )
        for site, part in manifest.sites.items()
    ]
