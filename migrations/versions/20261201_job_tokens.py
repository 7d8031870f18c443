"""The tokens of a job's files, which its validation stores for its attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0041_job_tokens"
down_revision = "0040_evaluation_rows"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_tokens",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("project_id", sa.Text(), sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("job_id", sa.Text(), sa.ForeignKey("jobs.id"), nullable=False, index=True),
        sa.Column("rendered_at", sa.Text(), nullable=False),
        sa.Column("storage_keys", JSONB(), nullable=False),
        sa.Column("sha256", JSONB(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
    )


def downgrade() -> None:
    op.drop_table("job_tokens")
