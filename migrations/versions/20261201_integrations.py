"""Jobs: the experiment trackers that get their metrics."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0043_integrations"
down_revision = "0041_job_tokens"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("integrations", JSONB()))


def downgrade() -> None:
    op.drop_column("jobs", "integrations")
