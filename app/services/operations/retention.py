"""Use cases of admins on retention rules. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.operations import retention
from app.db.tables import RetentionRule
from app.domain.operations.retention import RetentionKind
from app.services.access import projects

PREVIEW_LIMIT = 1_000_000  # rows


def view(session: Session, project_id: str | None, with_due: bool) -> list[RetentionRule]:
    """The rules of a project, or of every project that is not archived. Raises NotFound.

    `due` is what a rule deletes now, if the request includes that.
    """
    if project_id is not None:
        projects.get(session, project_id)
    rules = retention.rules(session, project_id)
    for rule in rules if with_due else ():
        rule.due = retention.due(session, rule, PREVIEW_LIMIT)
    return rules


def change(session: Session, project_id: str, days_by_kind: Mapping[RetentionKind, int | None]) -> list[RetentionRule]:
    """Set rules of a project; None removes one. Raises NotFound."""
    projects.get(session, project_id)
    table = RetentionRule
    for kind, days in days_by_kind.items():
        if days is None:
            session.execute(delete(table).where(table.project_id == project_id, table.kind == kind))
        else:
            statement = upsert(table).values(project_id=project_id, kind=kind, days=days)
            session.execute(statement.on_conflict_do_update(index_elements=["project_id", "kind"], set_={"days": days}))
    session.expire_all()
    return view(session, project_id, with_due=False)


def preview(session: Session, project_id: str, days_by_kind: Mapping[RetentionKind, int | None]) -> list[RetentionRule]:
    """The rules as `change` would leave them, each with what it would delete now. Stores nothing. Raises NotFound."""
    project = projects.get(session, project_id)
    stored: dict[str, int | None] = {rule.kind: rule.days for rule in retention.rules(session, project_id)}
    days_after = stored | {str(kind): days for kind, days in days_by_kind.items()}
    rules = [
        RetentionRule(project_id=project_id, project=project, kind=kind, days=days)
        for kind, days in sorted(days_after.items())
        if days
    ]
    for rule in rules:
        rule.due = retention.due(session, rule, PREVIEW_LIMIT)
    return rules
