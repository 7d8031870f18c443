"""An index of the pairs of jobs' metadata, for lists that are filtered by a rare pair."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_metadata"
down_revision = "0010_permissions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index(
        "ix_jobs_metadata",
        "jobs",
        ["metadata"],
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where=sa.text("metadata IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_metadata", table_name="jobs")
