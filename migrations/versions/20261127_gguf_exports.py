"""Exports as GGUF files: two more types, and the weights of a file, of which each model may have several exports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019_gguf_exports"
down_revision = "0018_others_share"
branch_labels = None
depends_on = None

INDEX = "uq_exports_one_of_a_kind"
CURRENT = sa.text("deleted_at IS NULL AND state <> 'failed'")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("exports", sa.Column("quantization", sa.Text(), nullable=True))
    op.drop_constraint(op.f("ck_exports_type"), "exports")
    op.create_check_constraint(op.f("ck_exports_type"), "exports", "type IN ('gguf', 'gguf_adapter', 'merged')")
    op.create_check_constraint(
        op.f("ck_exports_quantization"), "exports", "(type = 'gguf') = (quantization IS NOT NULL)"
    )
    op.drop_index(INDEX, "exports")
    op.create_index(
        INDEX,
        "exports",
        ["model", "type", "quantization"],
        unique=True,
        postgresql_where=CURRENT,
        postgresql_nulls_not_distinct=True,
    )


def downgrade() -> None:
    """Delete the exports of the new types, which the earlier release does not know; their files stay."""
    op.execute("DELETE FROM exports WHERE type <> 'merged'")
    op.drop_index(INDEX, "exports")
    op.create_index(INDEX, "exports", ["model", "type"], unique=True, postgresql_where=CURRENT)
    op.drop_constraint(op.f("ck_exports_quantization"), "exports")
    op.drop_constraint(op.f("ck_exports_type"), "exports")
    op.create_check_constraint(op.f("ck_exports_type"), "exports", "type IN ('merged')")
    op.drop_column("exports", "quantization")
