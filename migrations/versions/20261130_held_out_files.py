"""Files that were split: how, and which file has the rest of the rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0039_held_out_files"
down_revision = "0038_device_losses"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("preparation", postgresql.JSONB()))
    op.add_column("files", sa.Column("held_out_file_id", sa.Text()))
    op.add_column("files", sa.Column("training_file_id", sa.Text()))


def downgrade() -> None:
    op.drop_column("files", "training_file_id")
    op.drop_column("files", "held_out_file_id")
    op.drop_column("files", "preparation")
