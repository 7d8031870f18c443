"""The request that created a job: its id, and its trace, so that logs and spans of attempts belong to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016_job_origin"
down_revision = "0015_storage_full"
branch_labels = None
depends_on = None

COLUMNS = ("request_id", "traceparent")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for name in COLUMNS:
        op.add_column("jobs", sa.Column(name, sa.Text(), nullable=True))


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_column("jobs", name)
