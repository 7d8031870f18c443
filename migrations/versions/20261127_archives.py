"""Archives of adapters that are assembled when they are read: the names, keys and sizes of their files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020_archives"
down_revision = "0019_gguf_exports"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("files", sa.Column("archive_members", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.create_check_constraint(
        op.f("ck_files_archive_has_no_object"), "files", "archive_members IS NULL OR purged_at IS NOT NULL"
    )


def downgrade() -> None:
    """Mark assembled archives as deleted: the earlier release has no content for them."""
    op.execute(
        "UPDATE files SET deleted_at = clock_timestamp() WHERE archive_members IS NOT NULL AND deleted_at IS NULL"
    )
    op.drop_constraint(op.f("ck_files_archive_has_no_object"), "files")
    op.drop_column("files", "archive_members")
