"""An index for the deliveries under one name, which each delivery to an engine reads."""

from __future__ import annotations

from alembic import op

revision = "0034_served_models"
down_revision = "0033_counted_activations"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index("ix_deliveries_served_model", "deliveries", ["served_model"])


def downgrade() -> None:
    op.drop_index("ix_deliveries_served_model", "deliveries")
