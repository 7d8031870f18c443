"""Jobs: the group that one request has created, to be compared."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0045_job_groups"
down_revision = "0044_deleted_jobs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("group_id", sa.Text()))
    op.create_index("ix_jobs_group", "jobs", ["group_id"], postgresql_where=sa.text("group_id IS NOT NULL"))


def downgrade() -> None:
    op.drop_index("ix_jobs_group", "jobs")
    op.drop_column("jobs", "group_id")
