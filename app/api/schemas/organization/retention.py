"""Bodies of retention rules, for admins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Body
from app.api.schemas.jobs.requests import Strict
from app.domain.operations.retention import MAX_DAYS, RetentionKind
from app.services.operations.retention import RuleView

Days = Annotated[int, Field(ge=1, le=MAX_DAYS)]


class Rules(Strict):
    """Days by kind. Absent rules stay as they are; null removes a rule."""

    files: Days | None = None
    checkpoints: Days | None = None
    logs: Days | None = None
    events: Days | None = None
    exports: Days | None = None


class ChangeRetention(Strict):
    rules: Rules
    dry_run: Annotated[bool, Field(description="Show what the rules delete now, and store nothing.")] = False


class DueBody(Body):
    count: int
    size_bytes: int


class RetentionRuleBody(Body):
    object: Literal["organization.retention_rule"]
    project_id: str
    project: str
    kind: RetentionKind
    days: int
    due: DueBody | None


class RetentionRuleList(Body):
    object: Literal["list"]
    data: list[RetentionRuleBody]


def changes_of(body: ChangeRetention) -> dict[RetentionKind, int | None]:
    return {RetentionKind(kind): days for kind, days in body.rules.model_dump(exclude_unset=True).items()}


def render_rules(views: Sequence[RuleView]) -> dict[str, Any]:
    return {"object": "list", "data": [_render(view) for view in views]}


def _render(view: RuleView) -> dict[str, Any]:
    due = view.due
    return {
        "object": "organization.retention_rule",
        "project_id": view.project.id,
        "project": view.project.name,
        "kind": view.rule.kind,
        "days": view.rule.days,
        "due": None if due is None else {"count": due.count, "size_bytes": due.size_bytes},
    }
