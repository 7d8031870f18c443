"""Evaluations: where each row is in the results file, and when a running one will end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0040_evaluation_rows"
down_revision = "0039_held_out_files"
branch_labels = None
depends_on = None

COLUMNS = ("row_index", "estimated_finish")


def upgrade() -> None:
    op.add_column("evaluations", sa.Column("row_index", JSONB()))
    op.add_column("evaluations", sa.Column("estimated_finish", sa.DateTime(timezone=True)))


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_column("evaluations", name)
