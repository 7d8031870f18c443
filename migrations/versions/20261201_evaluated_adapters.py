"""Checkpoints: the files of the adapter whose card and manifest name its newest evaluation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0046_evaluated_adapters"
down_revision = "0045_job_groups"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("evaluated_file_ids", JSONB()))


def downgrade() -> None:
    op.drop_column("checkpoints", "evaluated_file_ids")
