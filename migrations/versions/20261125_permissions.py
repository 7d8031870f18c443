"""Permissions of other projects to use an `ft:` model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_permissions"
down_revision = "0009_exports"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "checkpoint_permissions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("grantee_id", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("project_id <> grantee_id", name=op.f("ck_checkpoint_permissions_grantee_is_another")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_checkpoint_permissions_project_id_projects")
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["tuned_models.id"], name=op.f("fk_checkpoint_permissions_model_id_tuned_models")
        ),
        sa.ForeignKeyConstraint(
            ["grantee_id"], ["projects.id"], name=op.f("fk_checkpoint_permissions_grantee_id_projects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoint_permissions")),
        sa.UniqueConstraint("seq", name=op.f("uq_checkpoint_permissions_seq")),
        sa.UniqueConstraint("model_id", "grantee_id", name=op.f("uq_checkpoint_permissions_model_id_grantee_id")),
    )
    op.create_index(op.f("ix_checkpoint_permissions_grantee_id"), "checkpoint_permissions", ["grantee_id"])


def downgrade() -> None:
    op.drop_table("checkpoint_permissions")
