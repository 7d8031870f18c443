"""Bodies of permissions on a checkpoint, in OpenAI's shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Body, ListBody, unix_seconds
from app.api.schemas.jobs.requests import Strict
from app.db.tables import CheckpointPermission
from app.domain.jobs.create_job import Id

MAX_PROJECTS = 100


class CreatePermissions(Strict):
    project_ids: Annotated[
        list[Id],
        Field(
            min_length=1, max_length=MAX_PROJECTS, description="The projects that may use the checkpoint: `proj_...`."
        ),
    ]


class PermissionBody(Body):
    id: str
    object: Literal["checkpoint.permission"]
    created_at: int
    project_id: str


class PermissionList(ListBody):
    data: list[PermissionBody]


def render_permission(permission: CheckpointPermission) -> dict[str, Any]:
    return {
        "id": permission.id,
        "object": "checkpoint.permission",
        "created_at": unix_seconds(permission.created_at),
        "project_id": permission.grantee_id,
    }
