"""The response body of the audit log, in OpenAI's shape where it has one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Body, ListBody, unix_seconds
from app.db.tables import AuditEntry


class ActorKey(Body):
    id: str


class Actor(Body):
    type: Literal["api_key", "operator", "system"]
    id: Annotated[str, Field(description="The id of a key, or an operator's account and host.")]
    api_key: ActorKey | None


class AuditProject(Body):
    id: str


class AuditBody(Body):
    id: str
    object: Literal["organization.audit_log"]
    type: Annotated[str, Field(description="The action, named after the route, such as fine_tuning.jobs.cancel.")]
    effective_at: int
    actor: Actor
    project: AuditProject | None
    object_ids: Annotated[list[str], Field(description="The ids in the path, and of the created object.")]
    ip_address: str | None
    request_id: str | None


class AuditList(ListBody):
    data: list[AuditBody]


def render_entry(entry: AuditEntry) -> dict[str, Any]:
    is_key = entry.actor_type == "api_key"
    return {
        "id": entry.id,
        "object": "organization.audit_log",
        "type": entry.action,
        "effective_at": unix_seconds(entry.created_at),
        "actor": {
            "type": entry.actor_type,
            "id": entry.actor_id,
            "api_key": {"id": entry.actor_id} if is_key else None,
        },
        "project": None if entry.project_id is None else {"id": entry.project_id},
        "object_ids": entry.object_ids,
        "ip_address": entry.address,
        "request_id": entry.request_id,
    }
