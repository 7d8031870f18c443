"""Workers whose GPU is broken: how many attempts in a row lost it, and since when the worker is out of service."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0038_device_losses"
down_revision = "0037_leases"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "device_losses",
        sa.Column("slot", sa.Text(), primary_key=True),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("out_of_service_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("count >= 1", name=op.f("ck_device_losses_count")),
    )


def downgrade() -> None:
    op.drop_table("device_losses")
