"""Delivery targets, deliveries of adapters, and the log-probabilities that the trainer records to check them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0023_deliveries"
down_revision = "0022_operator_webhook"
branch_labels = None
depends_on = None

JSONB = postgresql.JSONB(astext_type=sa.Text())
EMPTY_LIST = sa.text("'[]'::jsonb")


def _time(name: str, *, is_set: bool = False) -> sa.Column[sa.DateTime]:
    default = sa.text("clock_timestamp()") if is_set else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not is_set)


def _reference(table: str, column: str, to: str, ondelete: str | None = None) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{to}.id"], name=op.f(f"fk_{table}_{column}_{to}"), ondelete=ondelete)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("jobs", sa.Column("deliver_to", JSONB, server_default=EMPTY_LIST, nullable=False))
    op.create_table(
        "delivery_targets",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("destination", JSONB, nullable=False),
        sa.Column("credentials", sa.Text(), nullable=True),
        sa.Column("credential_names", JSONB, server_default=EMPTY_LIST, nullable=False),
        sa.Column("served_model", sa.Text(), nullable=True),
        sa.Column("is_default", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        _time("created_at", is_set=True),
        _time("updated_at", is_set=True),
        _time("deleted_at"),
        sa.CheckConstraint(
            "kind IN ('directory', 'huggingface', 's3', 'sglang', 'vllm')", name=op.f("ck_delivery_targets_kind")
        ),
        sa.CheckConstraint(
            "(deleted_at IS NOT NULL) <= (credentials IS NULL)",
            name=op.f("ck_delivery_targets_deleted_without_credentials"),
        ),
        _reference("delivery_targets", "project_id", "projects"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery_targets")),
        sa.UniqueConstraint("seq", name=op.f("uq_delivery_targets_seq")),
    )
    op.create_index(
        "uq_delivery_targets_name",
        "delivery_targets",
        ["project_id", "name"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index("ix_delivery_targets_page", "delivery_targets", ["project_id", "seq"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("target_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("served_model", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tries", sa.BigInteger(), server_default="0", nullable=False),
        _time("next_attempt_at"),
        _time("leased_until"),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("location", JSONB, nullable=True),
        sa.Column("served_check", JSONB, nullable=True),
        _time("created_at", is_set=True),
        _time("delivered_at"),
        _time("updated_at", is_set=True),
        sa.CheckConstraint(
            "state IN ('delivered', 'failed', 'pending', 'withdrawing', 'withdrawn')", name=op.f("ck_deliveries_state")
        ),
        sa.CheckConstraint(
            "(state IN ('pending', 'withdrawing')) <= (next_attempt_at IS NOT NULL)",
            name=op.f("ck_deliveries_next_attempt_at"),
        ),
        sa.CheckConstraint(
            "(state IN ('failed', 'withdrawn')) <= (next_attempt_at IS NULL)", name=op.f("ck_deliveries_ended")
        ),
        sa.CheckConstraint("tries BETWEEN 0 AND attempt", name=op.f("ck_deliveries_tries")),
        _reference("deliveries", "checkpoint_id", "checkpoints"),
        _reference("deliveries", "job_id", "jobs"),
        _reference("deliveries", "project_id", "projects"),
        _reference("deliveries", "target_id", "delivery_targets"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
        sa.UniqueConstraint("seq", name=op.f("uq_deliveries_seq")),
    )
    op.create_index(
        "uq_deliveries_one_of_a_model",
        "deliveries",
        ["target_id", "model"],
        unique=True,
        postgresql_where=sa.text("state <> 'withdrawn'"),
    )
    op.create_index("ix_deliveries_job", "deliveries", ["job_id", "seq"])
    op.create_index("ix_deliveries_model", "deliveries", ["model"])
    op.create_index(op.f("ix_deliveries_checkpoint_id"), "deliveries", ["checkpoint_id"])
    op.create_index(
        "ix_deliveries_due",
        "deliveries",
        ["target_id", "next_attempt_at"],
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.create_table(
        "served_references",
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("reference", JSONB, nullable=False),
        _time("created_at", is_set=True),
        _reference("served_references", "checkpoint_id", "checkpoints", ondelete="CASCADE"),
        _reference("served_references", "project_id", "projects"),
        sa.PrimaryKeyConstraint("checkpoint_id", name=op.f("pk_served_references")),
    )


def downgrade() -> None:
    op.drop_table("served_references")
    op.drop_table("deliveries")
    op.drop_table("delivery_targets")
    op.drop_column("jobs", "deliver_to")
