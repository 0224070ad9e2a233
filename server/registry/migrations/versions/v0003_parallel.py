"""What a hospital allows beside a run."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0003", "0002", None, None


def upgrade() -> None:
    """Add what runs side by side need to know of sites."""
    with op.batch_alter_table("sites") as sites:
        sites.add_column(sa.Column("max_parallel_runs", sa.Integer, nullable=False, server_default="1"))
