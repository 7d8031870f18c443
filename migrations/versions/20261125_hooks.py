"""Idempotency keys; webhook endpoints; an outbox to which every change of a job's state is written.

A trigger writes the outbox, so that no code path can omit it: the row is inserted in the transaction of the change, and
only for endpoints of the project that subscribe to the event.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008_hooks"
down_revision = "0007_queue"
branch_labels = None
depends_on = None

# For other events of a project: SELECT announce_event(project, type, data).
ANNOUNCE_EVENT = """
CREATE FUNCTION announce_event(project text, kind text, payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE event text := 'evt_' || replace(gen_random_uuid()::text, '-', '');
BEGIN
  INSERT INTO webhook_deliveries (id, project_id, endpoint_id, event_id, event_type, data, next_attempt_at)
  SELECT 'whd_' || replace(gen_random_uuid()::text, '-', ''), project, e.id, event, kind, payload, clock_timestamp()
  FROM webhook_endpoints e
  WHERE e.project_id = project AND e.enabled AND jsonb_exists(e.event_types, kind);
END $$
"""
ANNOUNCE_JOB = """
CREATE FUNCTION announce_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM announce_event(new.project_id, 'fine_tuning.job.' || new.state, jsonb_build_object('id', new.id));
  RETURN NULL;
END $$
"""
TRIGGER = """
CREATE TRIGGER announce_job AFTER UPDATE ON jobs FOR EACH ROW WHEN (old.state <> new.state)
EXECUTE FUNCTION announce_job()
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _create_idempotency_keys()
    _create_endpoints()
    _create_deliveries()
    _create_attempts()
    for statement in (ANNOUNCE_EVENT, ANNOUNCE_JOB, TRIGGER):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER announce_job ON jobs")
    op.execute("DROP FUNCTION announce_job()")
    op.execute("DROP FUNCTION announce_event(text, text, jsonb)")
    for table in ("webhook_attempts", "webhook_deliveries", "webhook_endpoints", "idempotency_keys"):
        op.drop_table(table)


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.Text(), nullable=False),
        _text("key"),
        _text("method"),
        _text("path"),
        _text("fingerprint"),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        _moment("created_at"),
        sa.CheckConstraint("(status IS NULL) = (answer IS NULL)", name=op.f("ck_idempotency_keys_answer_whole")),
        sa.CheckConstraint("status BETWEEN 200 AND 299", name=op.f("ck_idempotency_keys_status")),
        _project("idempotency_keys"),
        sa.PrimaryKeyConstraint("project_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def _create_endpoints() -> None:
    op.create_table(
        "webhook_endpoints",
        _text("id"),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        _text("project_id"),
        _text("name"),
        _text("url"),
        sa.Column("event_types", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        _moment("disabled_at", nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        _moment("failing_since", nullable=True),
        _text("secret"),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        _moment("previous_secret_expires_at", nullable=True),
        _moment("created_at"),
        _moment("updated_at"),
        sa.CheckConstraint("secret LIKE 'whsec_%'", name=op.f("ck_webhook_endpoints_secret")),
        sa.CheckConstraint(
            "(previous_secret IS NULL) = (previous_secret_expires_at IS NULL)",
            name=op.f("ck_webhook_endpoints_previous_secret"),
        ),
        sa.CheckConstraint("jsonb_array_length(event_types) > 0", name=op.f("ck_webhook_endpoints_event_types")),
        sa.CheckConstraint("enabled = (disabled_at IS NULL)", name=op.f("ck_webhook_endpoints_disabled_at")),
        sa.CheckConstraint("enabled = (disabled_reason IS NULL)", name=op.f("ck_webhook_endpoints_disabled_reason")),
        _project("webhook_endpoints"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
        sa.UniqueConstraint("seq", name=op.f("uq_webhook_endpoints_seq")),
    )
    op.create_index("ix_webhook_endpoints_page", "webhook_endpoints", ["project_id", "seq"])


def _create_deliveries() -> None:
    table = "webhook_deliveries"
    op.create_table(
        table,
        _text("id"),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        _text("project_id"),
        _text("endpoint_id"),
        _text("event_id"),
        _text("event_type"),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("is_test", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        _moment("created_at"),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tries", sa.BigInteger(), server_default="0", nullable=False),
        _moment("next_attempt_at", nullable=True),
        _moment("leased_until", nullable=True),
        _moment("finished_at", nullable=True),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name=op.f(f"ck_{table}_state")),
        sa.CheckConstraint(
            "(state = 'pending') = (next_attempt_at IS NOT NULL)", name=op.f(f"ck_{table}_next_attempt_at")
        ),
        sa.CheckConstraint("(state = 'pending') = (finished_at IS NULL)", name=op.f(f"ck_{table}_finished_at")),
        sa.CheckConstraint(
            "(leased_until IS NOT NULL) <= (state = 'pending')", name=op.f(f"ck_{table}_leased_while_pending")
        ),
        sa.CheckConstraint("tries BETWEEN 0 AND attempt", name=op.f(f"ck_{table}_tries")),
        _project(table),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
            name=op.f(f"fk_{table}_endpoint_id_webhook_endpoints"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        sa.UniqueConstraint("endpoint_id", "event_id", name=op.f(f"uq_{table}_endpoint_id_event_id")),
        sa.UniqueConstraint("seq", name=op.f(f"uq_{table}_seq")),
    )
    op.create_index("ix_webhook_deliveries_page", table, ["endpoint_id", "seq"])
    op.create_index(
        "ix_webhook_deliveries_due",
        table,
        ["endpoint_id", "next_attempt_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index("ix_webhook_deliveries_created_at", table, ["created_at"])


def _create_attempts() -> None:
    table = "webhook_attempts"
    op.create_table(
        table,
        _text("delivery_id"),
        sa.Column("attempt", sa.BigInteger(), autoincrement=False, nullable=False),
        _text("project_id"),
        _moment("finished_at"),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("status_code", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("response", sa.Text(), nullable=True),
        sa.CheckConstraint("status_code IS NOT NULL OR error IS NOT NULL", name=op.f(f"ck_{table}_outcome")),
        sa.CheckConstraint("duration_ms >= 0", name=op.f(f"ck_{table}_duration_ms")),
        _project(table),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["webhook_deliveries.id"],
            name=op.f(f"fk_{table}_delivery_id_webhook_deliveries"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("delivery_id", "attempt", name=op.f(f"pk_{table}")),
    )


def _text(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), nullable=False)


def _moment(name: str, nullable: bool = False) -> sa.Column[Any]:
    default = None if nullable else sa.text("clock_timestamp()")
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=nullable)


def _project(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f(f"fk_{table}_project_id_projects"))
