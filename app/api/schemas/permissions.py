"""Bodies of permissions on a checkpoint, in OpenAI's shape."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.api.schemas.common import Body, ListBody, UnixTime
from app.api.schemas.jobs.requests import Strict
from app.domain.jobs.create_job import Id

MAX_PROJECTS = 100


class CreatePermissions(Strict):
    project_ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_PROJECTS)]
    """The projects that may use the checkpoint: `proj_...`."""


class PermissionBody(Body):
    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: UnixTime
    project_id: str = Field(validation_alias="grantee_id")
    """The project that may use the checkpoint."""


class PermissionList(ListBody):
    data: list[PermissionBody]
