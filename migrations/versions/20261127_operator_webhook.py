"""The operator's webhook: an endpoint without a project, to which a trigger announces every failed job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022_operator_webhook"
down_revision = "0021_evaluations"
branch_labels = None
depends_on = None

TABLES = ("webhook_endpoints", "webhook_deliveries", "webhook_attempts")
ANNOUNCE_TO_OPERATOR = """
CREATE FUNCTION announce_to_operator(kind text, payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO webhook_deliveries (id, endpoint_id, event_id, event_type, data, next_attempt_at)
  SELECT 'whd_' || replace(gen_random_uuid()::text, '-', ''), e.id,
    'evt_' || replace(gen_random_uuid()::text, '-', ''), kind, payload, clock_timestamp()
  FROM webhook_endpoints e WHERE e.project_id IS NULL AND e.enabled;
END $$
"""
ANNOUNCE_FAILURE = """
CREATE FUNCTION announce_failed_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM announce_to_operator('operator.job_failed', jsonb_build_object(
    'id', new.id, 'project_id', new.project_id, 'code', new.error_code, 'message', new.error_message));
  RETURN NULL;
END $$
"""
TRIGGER = """
CREATE TRIGGER announce_failed_job AFTER UPDATE ON jobs FOR EACH ROW
WHEN (old.state <> new.state AND new.state = 'failed') EXECUTE FUNCTION announce_failed_job()
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in TABLES:
        op.alter_column(table, "project_id", existing_type=sa.Text(), nullable=True)
    for statement in (ANNOUNCE_TO_OPERATOR, ANNOUNCE_FAILURE, TRIGGER):
        op.execute(statement)


def downgrade() -> None:
    """Delete the operator's endpoint with its deliveries: the earlier release knows only those of projects."""
    op.execute("DROP TRIGGER announce_failed_job ON jobs")
    op.execute("DROP FUNCTION announce_failed_job()")
    op.execute("DROP FUNCTION announce_to_operator(text, jsonb)")
    op.execute("DELETE FROM webhook_endpoints WHERE project_id IS NULL")
    for table in TABLES:
        op.alter_column(table, "project_id", existing_type=sa.Text(), nullable=False)
