"""Jobs that their owner has deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0044_deleted_jobs"
down_revision = "0043_integrations"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "deleted_at")
