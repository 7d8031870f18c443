"""FLOP per token, and seconds of the probe and the validations, in measurements: the speed without other times."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012_speed"
down_revision = "0011_metadata"
branch_labels = None
depends_on = None

COLUMNS = ("step_flop", "probe_seconds", "validation_seconds")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for name in COLUMNS:
        op.add_column("measurements", sa.Column(name, sa.Float(), nullable=True))


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_column("measurements", name)
