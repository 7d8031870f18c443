"""Use cases of admins on retention rules. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.db.operations import retention
from app.db.operations.retention import Due
from app.db.tables import Project, RetentionRule
from app.domain.operations.retention import RetentionKind
from app.services.access import projects

PREVIEW_LIMIT = 1_000_000  # rows


@dataclass(frozen=True)
class RuleView:
    """A rule, and what it deletes now, if the request includes that."""

    project: Project
    rule: RetentionRule
    due: Due | None


def view(session: Session, project_id: str | None, with_due: bool) -> list[RuleView]:
    """The rules of a project, or of every project that is not archived. Raises NotFound."""
    if project_id is not None:
        projects.get(session, project_id)
    return [
        RuleView(project, rule, retention.due(session, rule, PREVIEW_LIMIT) if with_due else None)
        for project, rule in retention.rules(session, project_id)
    ]


def change(session: Session, project_id: str, days_by_kind: Mapping[RetentionKind, int | None]) -> list[RuleView]:
    """Set rules of a project; None removes one. Raises NotFound."""
    projects.get(session, project_id)
    for kind, days in days_by_kind.items():
        retention.set_rule(session, project_id, kind, days)
    session.flush()
    return view(session, project_id, with_due=False)


def preview(session: Session, project_id: str, days_by_kind: Mapping[RetentionKind, int | None]) -> list[RuleView]:
    """The rules as `change` would leave them, each with what it would delete now. Stores nothing. Raises NotFound."""
    project = projects.get(session, project_id)
    stored: dict[str, int | None] = {rule.kind: rule.days for _, rule in retention.rules(session, project_id)}
    days_after = stored | {str(kind): days for kind, days in days_by_kind.items()}
    rules = [
        RetentionRule(project_id=project_id, kind=kind, days=days) for kind, days in sorted(days_after.items()) if days
    ]
    return [RuleView(project, rule, retention.due(session, rule, PREVIEW_LIMIT)) for rule in rules]
