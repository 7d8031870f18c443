"""Signing secrets of webhooks may be encrypted; retired secrets of API keys stay known.

The values are encrypted by `tunery secrets rotate`, as a migration has no keys. Rows of both forms are read.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0031_secrets"
down_revision = "0030_registrations"
branch_labels = None
depends_on = None

CHECK = "ck_webhook_endpoints_secret"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_constraint(op.f(CHECK), "webhook_endpoints")
    op.create_check_constraint(op.f(CHECK), "webhook_endpoints", "secret LIKE 'whsec_%' OR secret LIKE 'gAAAA%'")
    op.add_column("webhook_endpoints", sa.Column("secret_hint", sa.Text(), nullable=True))
    op.create_table(
        "retired_api_keys",
        sa.Column("secret_sha256", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("secret_sha256", name=op.f("pk_retired_api_keys")),
    )


def downgrade() -> None:
    """The earlier release cannot read encrypted secrets: the endpoints are disabled, and get new secrets there."""
    op.drop_table("retired_api_keys")
    op.execute(
        "UPDATE webhook_endpoints SET enabled = false, disabled_at = coalesce(disabled_at, clock_timestamp()), "
        "disabled_reason = 'its secret was encrypted; rotate it and enable the endpoint' WHERE secret LIKE 'gAAAA%'"
    )
    op.execute(
        "UPDATE webhook_endpoints SET previous_secret = NULL, previous_secret_expires_at = NULL "
        "WHERE previous_secret LIKE 'gAAAA%'"
    )
    op.execute("UPDATE webhook_endpoints SET secret = 'whsec_' || secret WHERE secret LIKE 'gAAAA%'")
    op.drop_column("webhook_endpoints", "secret_hint")
    op.drop_constraint(op.f(CHECK), "webhook_endpoints")
    op.create_check_constraint(op.f(CHECK), "webhook_endpoints", "secret LIKE 'whsec_%'")
