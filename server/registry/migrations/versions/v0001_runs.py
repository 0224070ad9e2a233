"""Runs, their rounds, who took part, and the sites."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0001", None, None, None
_WHEN = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("federation", sa.String, nullable=False),
        sa.Column("run", sa.String, nullable=False),
        sa.Column("label", sa.String),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("submitted", _WHEN, nullable=False),
        sa.Column("started", _WHEN),
        sa.Column("ended", _WHEN),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("folder", sa.String),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("rounds", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("best_round", sa.Integer),
        sa.Column("best_auc", sa.Double),
        sa.Column("doing", sa.String, nullable=False),
        sa.Column("error", sa.String, nullable=False),
        sa.Column("remedy", sa.String, nullable=False),
        sa.Column("exit_code", sa.Integer),
        sa.Column("refused", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("federation", "run", name=op.f("uq_runs_federation_run")),
    )
    op.create_index(op.f("ix_runs_state"), "runs", ["state"])
    op.create_table(
        "rounds",
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("stage", sa.String, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("base", sa.String, nullable=False),
        sa.Column("result", sa.String, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("aggregation_s", sa.Double, nullable=False),
        sa.Column("deadline_s", sa.Double),
        sa.Column("validation_auc", sa.Double),
        sa.Column("validation_loss", sa.Double),
        sa.Column("patients", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "stage", "round", name=op.f("pk_rounds")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_rounds_run_id_runs"), ondelete="CASCADE"),
    )
    op.create_table(
        "participation",
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("stage", sa.String, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("site", sa.String, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("of_round", sa.Integer),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("patients", sa.JSON, nullable=False),
        sa.Column("training_loss", sa.Double),
        sa.Column("validation_auc", sa.Double),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("sent_bytes", sa.BigInteger, nullable=False),
        sa.Column("received_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String),
        sa.PrimaryKeyConstraint("run_id", "stage", "round", "site", name=op.f("pk_participation")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_participation_run_id_runs"), ondelete="CASCADE"),
    )
    op.create_table(
        "sites",
        sa.Column("federation", sa.String, nullable=False),
        sa.Column("site", sa.String, nullable=False),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("encoder", sa.String, nullable=False),
        sa.Column("patients", sa.JSON, nullable=False),
        sa.Column("described", _WHEN, nullable=False),
        sa.PrimaryKeyConstraint("federation", "site", name=op.f("pk_sites")),
    )
