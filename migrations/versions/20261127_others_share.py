"""The share of a CPU that other programs used while a job ran: runs on a crowded machine count less in later plans."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018_others_share"
down_revision = "0017_service_state"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("measurements", sa.Column("others_share", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("measurements", "others_share")
