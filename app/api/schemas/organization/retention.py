"""Bodies of retention rules, for admins."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasPath, Field

from app.api.schemas.common import Body
from app.api.schemas.jobs.requests import Strict
from app.domain.operations.retention import MAX_DAYS, RetentionKind

Days = Annotated[int, Field(ge=1, le=MAX_DAYS)]


class Rules(Strict):
    """Days by kind. Absent rules stay as they are; null removes a rule."""

    files: Days | None = None
    """Uploaded files that no unfinished job needs."""
    checkpoints: Days | None = None
    """Checkpoints of ended jobs, never a job's result."""
    logs: Days | None = None
    """Logs of the trainer, of ended jobs."""
    events: Days | None = None
    """Events of ended jobs, never the last one."""
    exports: Days | None = None
    """Exports, from their end."""


class ChangeRetention(Strict):
    rules: Rules
    """The rules to change."""
    dry_run: bool = False
    """Show what the rules delete now, and store nothing."""


class DueBody(Body):
    count: int
    """The number of files, checkpoints, logs, events or exports."""
    size_bytes: int
    """The bytes of their files or texts."""


class RetentionRuleBody(Body):
    object: Literal["organization.retention_rule"] = "organization.retention_rule"
    project_id: str
    project: str = Field(validation_alias=AliasPath("project", "name"))
    """The name of the project."""
    kind: RetentionKind
    """What the rule deletes: `logs` and `events` of ended jobs, for example."""
    days: int
    """The age at which they are deleted."""
    due: DueBody | None
    """What the rule deletes now; null unless the request includes it."""


class RetentionRuleList(Body):
    object: Literal["list"] = "list"
    data: list[RetentionRuleBody]


def changes_of(body: ChangeRetention) -> dict[RetentionKind, int | None]:
    return {RetentionKind(kind): days for kind, days in body.rules.model_dump(exclude_unset=True).items()}
