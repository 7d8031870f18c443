"""Since when all attempts of a job or an export have ended on a full disk, by which the delays of retries grow."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015_storage_full"
down_revision = "0014_job_filters"
branch_labels = None
depends_on = None

TABLES = ("jobs", "exports")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in TABLES:
        op.add_column(table, sa.Column("storage_full_since", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Keep jobs that wait for storage queued, without the phase, which the earlier release does not know."""
    op.execute("UPDATE jobs SET phase = NULL WHERE phase = 'waiting_for_storage'")
    for table in TABLES:
        op.drop_column(table, "storage_full_since")
