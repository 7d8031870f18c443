"""Deliveries and webhooks get the lease of the other queues: an owner, and when it expires.

A release before this one cannot send while this schema is there: stop its senders first.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0037_leases"
down_revision = "0036_delivery_places"
branch_labels = None
depends_on = None

TABLES = ("deliveries", "webhook_deliveries")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in TABLES:
        op.alter_column(table, "leased_until", new_column_name="lease_expires_at")
        op.add_column(table, sa.Column("lease_owner", sa.Text()))
        op.execute(f"UPDATE {table} SET lease_owner = 'sender#earlier' WHERE lease_expires_at IS NOT NULL")
        name = op.f(f"ck_{table}_lease_whole")
        op.create_check_constraint(name, table, "(lease_owner IS NULL) = (lease_expires_at IS NULL)")
        op.create_index(
            f"ix_{table}_lease", table, ["lease_expires_at"], postgresql_where=sa.text("lease_owner IS NOT NULL")
        )


def downgrade() -> None:
    for table in TABLES:
        op.drop_index(f"ix_{table}_lease", table)
        op.drop_constraint(op.f(f"ck_{table}_lease_whole"), table)
        op.drop_column(table, "lease_owner")
        op.alter_column(table, "lease_expires_at", new_column_name="leased_until")
