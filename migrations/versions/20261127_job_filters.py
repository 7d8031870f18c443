"""Indexes for lists of jobs by state and by time of creation."""

from __future__ import annotations

from alembic import op

revision = "0014_job_filters"
down_revision = "0013_job_warnings"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index("ix_jobs_state", "jobs", ["project_id", "state", "seq"])
    op.create_index("ix_jobs_created", "jobs", ["project_id", "created_at"])


def downgrade() -> None:
    op.drop_index("ix_jobs_created", "jobs")
    op.drop_index("ix_jobs_state", "jobs")
