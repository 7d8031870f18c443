"""Refuse deliveries at another place than their target's, or at several: the later code knows one place for each.

Earlier releases let the address and the served name of a target change while adapters were there.
"""

from __future__ import annotations

from alembic import op
from alembic.util import CommandError
from sqlalchemy import text

revision = "0036_delivery_places"
down_revision = "0034_served_models"
branch_labels = None
depends_on = None

ELSEWHERE = """
SELECT delivery.id, delivery.job_id, target.name
FROM deliveries AS delivery JOIN delivery_targets AS target ON target.id = delivery.target_id
WHERE delivery.state <> 'withdrawn' AND delivery.location IS NOT NULL AND target.deleted_at IS NULL AND (
  delivery.location ? 'earlier'
  OR coalesce(delivery.location->>'served_model', delivery.served_model) <> delivery.served_model
  OR CASE target.kind
    WHEN 'directory' THEN
      delivery.location->>'path' <> (rtrim(target.destination->>'path', '/') || '/' || delivery.served_model)
    WHEN 's3' THEN
      coalesce(delivery.location->>'bucket', target.destination->>'bucket') <> target.destination->>'bucket'
      OR delivery.location->'endpoint_url' IS DISTINCT FROM target.destination->'endpoint_url'
      OR target.destination->>'prefix' <> ''
        AND NOT starts_with(delivery.location->>'prefix', trim(BOTH '/' FROM target.destination->>'prefix') || '/')
    WHEN 'huggingface' THEN delivery.location->>'repo_id' <> target.destination->>'repo_id'
    ELSE target.destination->>'shared_path' IS NOT NULL AND NOT starts_with(
      delivery.location->>'path',
      coalesce(target.destination->>'engine_path', target.destination->>'shared_path') || '/')
  END
)
ORDER BY target.name, delivery.seq
"""


def upgrade() -> None:
    found = op.get_bind().execute(text(ELSEWHERE)).all()
    if found:
        rows = "; ".join(
            f"`tunery jobs withdraw {job_id} {delivery_id}` ({name})" for delivery_id, job_id, name in found
        )
        raise CommandError(
            f"{len(found)} deliveries are at another place than their target's, or under an earlier name, which this "
            f"release cannot withdraw. Start the earlier release again, withdraw them there, then upgrade: {rows}"
        )


def downgrade() -> None:
    pass
