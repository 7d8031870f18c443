"""Registrations whose model a worker downloads from a hub first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0032_model_pulls"
down_revision = "0031_secrets"
branch_labels = None
depends_on = None

TABLE = "base_model_registrations"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(TABLE, sa.Column("is_pull", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_check_constraint(op.f(f"ck_{TABLE}_pull_has_source"), TABLE, "source IS NOT NULL OR NOT is_pull")


def downgrade() -> None:
    """End unfinished pulls: the earlier release would register the directory of all models instead."""
    op.execute(
        f"UPDATE {TABLE} SET state = 'failed', finished_at = clock_timestamp(), lease_owner = NULL, "
        "lease_expires_at = NULL, error_code = 'server_error', error_message = 'The release was taken back' "
        "WHERE is_pull AND state IN ('queued', 'running')"
    )
    op.drop_column(TABLE, "is_pull")
