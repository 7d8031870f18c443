"""What the first job counts of a base model, beside the entry, which processes of earlier releases still read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0033_counted_activations"
down_revision = "0032_model_pulls"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "base_models",
        sa.Column("counted_activation_bytes", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
    )


def downgrade() -> None:
    """The next job counts again."""
    op.drop_column("base_models", "counted_activation_bytes")
