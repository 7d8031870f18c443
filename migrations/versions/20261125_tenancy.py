"""Limits of projects, scopes and rotation of API keys, GPUs of attempts, and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004_tenancy"
down_revision = "0003_measurements"
branch_labels = None
depends_on = None

LIMITS = (
    "max_stored_bytes", "max_queued_jobs", "max_running_jobs", "max_gpu_seconds_per_month", "max_requests_per_second",
)  # fmt: skip
APPEND_ONLY = """
CREATE FUNCTION refuse_change_of_audit_log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the audit log is append-only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _upgrade_projects()
    _upgrade_keys()
    _upgrade_usage()
    _create_audit_log()


def _upgrade_projects() -> None:
    op.add_column("projects", sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False))
    op.create_unique_constraint(op.f("uq_projects_seq"), "projects", ["seq"])
    op.add_column("projects", sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True))
    for limit in LIMITS:
        op.add_column("projects", sa.Column(limit, sa.BigInteger(), nullable=True))
    op.add_column("projects", sa.Column("share_weight", sa.Float(), server_default=sa.text("1"), nullable=False))
    op.create_check_constraint(
        op.f("ck_projects_limits"),
        "projects",
        "max_stored_bytes >= 0 AND max_queued_jobs >= 0 AND max_running_jobs >= 0 "
        "AND max_gpu_seconds_per_month >= 0 AND max_requests_per_second >= 1",
    )
    op.create_check_constraint(
        op.f("ck_projects_share_weight"), "projects", "share_weight > 0 AND share_weight < 'Infinity'"
    )


def _upgrade_keys() -> None:
    op.add_column("api_keys", sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False))
    op.create_unique_constraint(op.f("uq_api_keys_seq"), "api_keys", ["seq"])
    op.add_column("api_keys", sa.Column("redacted", sa.Text(), server_default="", nullable=False))
    op.add_column("api_keys", sa.Column("previous_secret_sha256", sa.Text(), nullable=True))
    op.create_unique_constraint(op.f("uq_api_keys_previous_secret_sha256"), "api_keys", ["previous_secret_sha256"])
    for moment in ("previous_expires_at", "rotated_at", "expires_at"):
        op.add_column("api_keys", sa.Column(moment, sa.DateTime(timezone=True), nullable=True))
    everything = sa.text("'[\"all\"]'::jsonb")
    op.add_column(
        "api_keys",
        sa.Column("scopes", postgresql.JSONB(astext_type=sa.Text()), server_default=everything, nullable=False),
    )
    op.execute('UPDATE api_keys SET scopes = \'["all", "admin"]\'::jsonb WHERE is_admin')
    op.drop_column("api_keys", "is_admin")
    op.create_check_constraint(
        op.f("ck_api_keys_previous_whole"),
        "api_keys",
        "(previous_secret_sha256 IS NULL) = (previous_expires_at IS NULL)",
    )
    op.create_check_constraint(
        op.f("ck_api_keys_previous_differs"), "api_keys", "previous_secret_sha256 <> secret_sha256"
    )
    op.create_check_constraint(
        op.f("ck_api_keys_scopes"), "api_keys", "jsonb_typeof(scopes) = 'array' AND scopes <> '[]'::jsonb"
    )


def _upgrade_usage() -> None:
    op.add_column("attempts", sa.Column("gpus", sa.BigInteger(), server_default="1", nullable=False))
    op.create_check_constraint(op.f("ck_attempts_gpus"), "attempts", "gpus >= 1")
    op.create_index(
        "ix_attempts_usage", "attempts", ["project_id", "ended_at"], postgresql_where=sa.text("kind = 'train'")
    )
    op.create_index(
        "ix_files_stored",
        "files",
        ["project_id"],
        postgresql_include=["bytes"],
        postgresql_where=sa.text("purged_at IS NULL"),
    )


def _create_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("actor_type", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Text(), nullable=False),
        sa.Column("object_ids", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.CheckConstraint("actor_type IN ('api_key', 'operator', 'system')", name=op.f("ck_audit_log_actor_type")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_audit_log_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
        sa.UniqueConstraint("seq", name=op.f("uq_audit_log_seq")),
    )
    op.create_index("ix_audit_log_page", "audit_log", ["project_id", "seq"])
    op.execute(APPEND_ONLY)
    for name, events, each in (("row", "UPDATE OR DELETE", "ROW"), ("all", "TRUNCATE", "STATEMENT")):
        op.execute(
            f"CREATE TRIGGER append_only_{name} BEFORE {events} ON audit_log "
            f"FOR EACH {each} EXECUTE FUNCTION refuse_change_of_audit_log()"
        )


def downgrade() -> None:
    op.drop_table("audit_log")
    op.execute("DROP FUNCTION refuse_change_of_audit_log()")
    op.drop_index("ix_files_stored", table_name="files")
    op.drop_index("ix_attempts_usage", table_name="attempts")
    op.drop_column("attempts", "gpus")
    op.add_column("api_keys", sa.Column("is_admin", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.execute("UPDATE api_keys SET is_admin = true WHERE scopes ? 'admin'")
    for column in (
        "seq", "redacted", "previous_secret_sha256", "previous_expires_at", "rotated_at", "expires_at", "scopes",
    ):  # fmt: skip
        op.drop_column("api_keys", column)
    for column in ("seq", "archived_at", *LIMITS, "share_weight"):
        op.drop_column("projects", column)
