"""Where a model is served: one query, before a request is passed on to an engine. No connection is held afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.db.fast_reads.pool import AsyncConnections
from app.domain.deliveries.targets import ENGINES, DeliveryState

# An `ft:` model of the project or shared with it, or a base model that is offered to it, by its name or an alias.
USABLE_MODEL = """
SELECT tuned.id, tuned.project_id, false AS is_base, job.spec -> 'chat_template_kwargs' AS chat_template_kwargs
FROM tuned_models AS tuned JOIN jobs AS job ON job.id = tuned.job_id
WHERE tuned.id = %(model)s AND tuned.deleted_at IS NULL AND (
  tuned.project_id = %(project_id)s OR EXISTS (
    SELECT FROM checkpoint_permissions AS permission
    WHERE permission.model_id = tuned.id AND permission.grantee_id = %(project_id)s
  )
)
UNION ALL
SELECT base.name, %(project_id)s, true, NULL FROM base_models AS base
WHERE (base.project_id IS NULL OR base.project_id = %(project_id)s)
  AND base.name = coalesce((SELECT base_model FROM model_aliases WHERE name = %(model)s), %(model)s)
"""
# The engines of the model's own project. A base model is served by every engine that has an adapter of it.
SERVED_MODEL = f"""
SELECT model.id AS name, model.is_base, model.project_id AS owner_id, model.chat_template_kwargs, served.*
FROM ({USABLE_MODEL}) AS model
LEFT JOIN LATERAL (
  SELECT DISTINCT ON (target.id, CASE WHEN model.is_base THEN '' ELSE delivery.served_model END)
    target.id AS target_id, target.name AS target, target.destination, target.credentials, delivery.served_model
  FROM deliveries AS delivery
  JOIN delivery_targets AS target ON target.id = delivery.target_id AND target.deleted_at IS NULL
  JOIN jobs AS job ON job.id = delivery.job_id
  WHERE delivery.state = '{DeliveryState.DELIVERED.value}' AND target.kind = ANY(%(engines)s)
    AND target.project_id = model.project_id
    AND CASE WHEN model.is_base THEN job.base_model = model.id ELSE delivery.model = model.id END
) AS served ON true
"""


@dataclass(frozen=True)
class ServingTarget:
    """A delivery target that serves a model; `served_model` is None for a base model, which it names itself."""

    name: str
    destination: dict[str, Any]
    credentials: str | None  # encrypted
    served_model: str | None


@dataclass(frozen=True)
class ServedModel:
    name: str  # an alias stands for its base model
    is_base: bool
    owner_id: str  # the project of an `ft:` model, which may share it
    targets: Sequence[ServingTarget]
    chat_template_kwargs: Mapping[str, Any] | None = None  # of the job of an `ft:` model


async def find_served_model(connections: AsyncConnections, project_id: str, model: str) -> ServedModel | None:
    """None if the project has no such model."""
    values = {"project_id": project_id, "model": model, "engines": sorted(ENGINES)}
    rows = await connections.fetch_all(SERVED_MODEL, values)
    if not rows:
        return None
    first = rows[0]
    targets = [
        ServingTarget(row.target, row.destination, row.credentials, None if first.is_base else row.served_model)
        for row in rows
        if row.target_id is not None
    ]
    return ServedModel(first.name, first.is_base, first.owner_id, targets, first.chat_template_kwargs)
