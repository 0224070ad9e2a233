"""The queue: priorities, runs that wait for others, and the coordinator that works through it."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0002", "0001", None, None


def upgrade() -> None:
    """Add what a queue needs."""
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
        runs.add_column(sa.Column("revision", sa.Integer, nullable=False, server_default="0"))
        runs.add_column(sa.Column("after", sa.String))
        runs.add_column(sa.Column("weights", sa.String))
    op.create_table(
        "coordinators",
        sa.Column("federation", sa.String, nullable=False),
        sa.Column("sites", sa.JSON, nullable=False),
        sa.Column("address", sa.String, nullable=False),
        sa.Column("listen", sa.String),
        sa.Column("credentials", sa.String, nullable=False),
        sa.Column("parallel", sa.Integer, nullable=False),
        sa.Column("state_folder", sa.String, nullable=False),
        sa.Column("seen", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("federation", name=op.f("pk_coordinators")),
    )
