"""The response body of the audit log, in OpenAI's shape where it has one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.api.schemas.common import Body, ListBody, UnixTime


class ActorKey(Body):
    id: str


class Actor(Body):
    type: Literal["api_key", "operator", "system"]
    """An API key, an operator's command on the server, or the service itself at its first start."""
    id: str
    """The id of a key, or an operator's account and host."""
    api_key: ActorKey | None
    """The key; null for an operator and for the service itself."""


class AuditProject(Body):
    id: str


class AuditBody(Body):
    id: str
    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str = Field(validation_alias="action")
    """The action, named after the route, such as fine_tuning.jobs.cancel."""
    effective_at: UnixTime = Field(validation_alias="created_at")
    """The time of the change, in seconds since 1970."""
    actor: Actor
    """Who made the change."""
    project: AuditProject | None
    """The changed project, else the key's project; null for a command without a project."""
    object_ids: list[str]
    """The ids in the path, and of the created object."""
    ip_address: str | None = Field(validation_alias="address")
    """The client's address; behind a proxy that is not trusted, the proxy's address. Null for a command."""
    request_id: str | None
    """The `x-request-id` of the response, which is also in the API's log; null for a command."""


class AuditList(ListBody):
    data: list[AuditBody]
