"""The tables of the registry. A change here needs a migration in `migrations/versions`; a test compares the two."""

from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

RunState = Literal["queued", "running", "stopping", "stopped", "failed", "finished"]
STATES: tuple[RunState, ...] = get_args(RunState)
NEVER = datetime.fromtimestamp(0, UTC)
"""When a coordinator that has ended was seen."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps no time zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn into UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Say that it is UTC."""
        if value is None or value.tzinfo is not None:
            return None if value is None else value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Constraints have names, so that a migration can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        dict[str, int]: JSON,
        dict[str, str]: JSON,
        list[str]: JSON,
        str: String,
        float: Double,
    }


class Run(Base):
    """A run, from the moment somebody asked for it."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("federation", "run"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    federation: Mapped[str]
    run: Mapped[str]
    """Its name: that of its folder, and what the hospitals know it by."""
    label: Mapped[str | None]
    """What whoever submitted it calls it."""
    state: Mapped[str] = mapped_column(index=True)
    """A `RunState`."""
    priority: Mapped[int] = mapped_column(default=0)
    """Of those that are queued, the highest is next; among equals, the one that was submitted first."""
    after: Mapped[str | None]
    """The run that is to be finished before this one begins."""
    weights: Mapped[str | None]
    """`encoder.weights` of its federation.toml: a path on the coordinator's machine."""
    revision: Mapped[int] = mapped_column(default=0)
    """Counts the changes of its state: of two accounts, the one with more is the later."""
    submitted: Mapped[datetime]
    started: Mapped[datetime | None]
    ended: Mapped[datetime | None]
    config: Mapped[dict[str, Any]]
    """As `settings_of_run` gives it: without a path or a password of the coordinator's machine."""
    folder: Mapped[str | None]
    """Where its files are, on the coordinator's machine; None until it has one."""
    model: Mapped[str]
    rounds: Mapped[int]
    """Rounds it is to have, over all stages."""
    done: Mapped[int] = mapped_column(default=0)
    """Rounds that are over."""
    best_round: Mapped[int | None]
    best_auc: Mapped[float | None]
    """Validation AUC of the best model so far."""
    doing: Mapped[str] = mapped_column(default="")
    """What it is at, or waits for, in words."""
    error: Mapped[str] = mapped_column(default="")
    remedy: Mapped[str] = mapped_column(default="")
    exit_code: Mapped[int | None]
    refused: Mapped[dict[str, str]] = mapped_column(default=dict)
    """Sites that were kept out, with the reason."""


class Coordinator(Base):
    """The coordinator that serves a federation's queue, and when it was last there."""

    __tablename__ = "coordinators"

    federation: Mapped[str] = mapped_column(primary_key=True)
    sites: Mapped[list[str]]
    address: Mapped[str]
    listen: Mapped[str | None]
    credentials: Mapped[str]
    """Its folder of credentials: a path on its machine."""
    parallel: Mapped[int]
    """Runs that it serves side by side, at most."""
    state_folder: Mapped[str]
    """`--dir`."""
    seen: Mapped[datetime]


class Round(Base):
    """A round that is over: one row a manifest."""

    __tablename__ = "rounds"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    """Folder of the stage below the run's, "" for a run without stages."""
    round: Mapped[int] = mapped_column(primary_key=True)
    base: Mapped[str]
    result: Mapped[str]
    """Hashes of the model it started from and of that it ended with."""
    seconds: Mapped[float]
    aggregation_s: Mapped[float]
    deadline_s: Mapped[float | None]
    validation_auc: Mapped[float | None]
    """Of the model the round started from."""
    validation_loss: Mapped[float | None]
    patients: Mapped[dict[str, int]]
    """That counted for each parameter group."""


class Part(Base):
    """One site's part in one round."""

    __tablename__ = "participation"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(primary_key=True)
    outcome: Mapped[str]
    reason: Mapped[str]
    of_round: Mapped[int | None]
    weight: Mapped[float]
    patients: Mapped[dict[str, int]]
    training_loss: Mapped[float | None]
    validation_auc: Mapped[float | None]
    seconds: Mapped[float]
    sent_bytes: Mapped[int] = mapped_column(BigInteger)
    received_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    """Of its update, as it came."""


class Site(Base):
    """A hospital, as it last described itself."""

    __tablename__ = "sites"

    federation: Mapped[str] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]
    """Of its fedpath."""
    encoder: Mapped[str]
    patients: Mapped[dict[str, Any]]
    """By split; null where its policy withholds the number."""
    described: Mapped[datetime]
    max_parallel_runs: Mapped[int] = mapped_column(default=1)
    """By its policy."""
