"""Reports of the service's processes, and since when a worker that vanished is lost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017_service_state"
down_revision = "0016_job_origin"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "service_state",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "data", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_service_state")),
    )
    op.add_column("workers", sa.Column("lost_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_jobs_failed", "jobs", ["finished_at"], postgresql_where=sa.text("state = 'failed'"))


def downgrade() -> None:
    op.drop_index("ix_jobs_failed", "jobs")
    op.drop_column("workers", "lost_at")
    op.drop_table("service_state")
