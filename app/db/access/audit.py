"""The audit log: one row for each transaction that changed something, written in that transaction.

Who calls is known to the edge (a request, a command), what changed to the session. The edge says the first with
`acting`; the sessions of a `watch`ed factory do the rest, so no route and no use-case has to think of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ARRAY, Select, Text, cast, event, insert, select
from sqlalchemy.orm import ORMExecuteState, Session

from app.db.base import core_table
from app.db.engine import Sessions
from app.db.ids import new_id
from app.db.tables import AuditEntry, Project

ActorType = Literal["api_key", "operator", "system"]
CHANGED_KEY = "audit.changed"  # in session.info: (id, project) of rows that changed, once anything was written
MAX_OBJECTS = 20
INSERT = insert(core_table(AuditEntry))  # beside the session: an entry is no change that would want an entry


@dataclass
class AuditContext:
    """Filled in as it becomes known: a request has an address before it has a key. No actor, no entry."""

    request_id: str | None = None
    address: str | None = None
    action: str | None = None
    actor_type: ActorType = "api_key"
    actor_id: str | None = None
    project_id: str | None = None
    object_ids: list[str] = field(default_factory=list)
    is_over: bool = False  # a task that outlives the request that started it acts for nobody

    @property
    def is_attributed(self) -> bool:
        return self.action is not None and self.actor_id is not None and not self.is_over


CURRENT_CONTEXT: ContextVar[AuditContext | None] = ContextVar("act", default=None)


@contextmanager
def audited_as(act: AuditContext) -> Iterator[AuditContext]:
    token = CURRENT_CONTEXT.set(act)
    try:
        yield act
    finally:
        act.is_over = True
        CURRENT_CONTEXT.reset(token)


def audit_sessions(sessions: Sessions) -> None:
    event.listen(sessions, "do_orm_execute", _on_statement)
    event.listen(sessions, "before_flush", _on_flush)
    event.listen(sessions, "before_commit", _on_commit)
    event.listen(sessions, "after_rollback", _on_rollback)


def add_object(object_id: str, project_id: str | None) -> None:
    """What a command without a path is about, where a statement changes it and no object of the session does."""
    act = CURRENT_CONTEXT.get()
    if act is not None:
        act.object_ids.append(object_id)
        act.project_id = act.project_id or project_id


def get(session: Session, entry_id: str) -> AuditEntry | None:
    return session.get(AuditEntry, entry_id)


def page(
    session: Session,
    limit: int,
    after: AuditEntry | None = None,
    before: AuditEntry | None = None,
    project_ids: Collection[str] = (),
    actor_ids: Collection[str] = (),
    actions: Collection[str] = (),
    object_ids: Collection[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[AuditEntry]:
    """Newest first, at most `limit`; an empty filter lets everything through.

    The last entry only says that there are more. With `before` alone the page ends at that entry instead of beginning
    at the newest one, so the one that says so is newer than the others.
    """
    ends_at = before is not None and after is None
    query = select(AuditEntry).order_by(AuditEntry.seq if ends_at else AuditEntry.seq.desc()).limit(limit)
    if after is not None:
        query = query.where(AuditEntry.seq < after.seq)
    if before is not None:
        query = query.where(AuditEntry.seq > before.seq)
    for column, wanted in (
        (AuditEntry.project_id, project_ids), (AuditEntry.actor_id, actor_ids), (AuditEntry.action, actions),
    ):  # fmt: skip
        if wanted:
            query = query.where(column.in_(wanted))
    if object_ids:
        query = query.where(AuditEntry.object_ids.has_any(cast(list(object_ids), ARRAY(Text))))
    rows = list(session.scalars(_within(query, since, until)))
    return [*reversed(rows[: limit - 1]), *rows[limit - 1 :]] if ends_at else rows


def _within(query: Select[AuditEntry], since: datetime | None, until: datetime | None) -> Select[AuditEntry]:
    if since is not None:
        query = query.where(AuditEntry.created_at >= since)
    if until is not None:
        query = query.where(AuditEntry.created_at < until)
    return query


def _on_statement(state: ORMExecuteState) -> None:
    if state.is_insert or state.is_update or state.is_delete:
        state.session.info.setdefault(CHANGED_KEY, [])


def _on_flush(session: Session, _context: Any, _instances: Any) -> None:
    """Before the flush: after it, a column that the database computes looks as if nobody had changed it."""
    modified = [row for row in session.dirty if session.is_modified(row)]
    rows = [*session.new, *modified, *session.deleted]
    if rows:
        session.info.setdefault(CHANGED_KEY, []).extend(_changed_ids(rows))


def _on_commit(session: Session) -> None:
    act = CURRENT_CONTEXT.get()
    if act is None or not act.is_attributed:
        return
    session.flush()
    changed: list[tuple[str, str | None]] | None = session.info.pop(CHANGED_KEY, None)
    if changed is not None:
        session.connection().execute(INSERT, _entry(act, changed))


def _on_rollback(session: Session) -> None:
    session.info.pop(CHANGED_KEY, None)


def _entry(act: AuditContext, changed: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    project_ids = [act.project_id, *(project_id for _, project_id in changed)]
    return {
        "id": new_id("audit_log"),
        "project_id": next((project_id for project_id in project_ids if project_id is not None), None),
        "action": act.action,
        "actor_type": act.actor_type,
        "actor_id": act.actor_id,
        "object_ids": list(dict.fromkeys([*act.object_ids, *(object_id for object_id, _ in changed)]))[:MAX_OBJECTS],
        "address": act.address,
        "request_id": act.request_id,
    }


def _changed_ids(rows: Sequence[Any]) -> list[tuple[str, str | None]]:
    """What has an id of its own, and not only a place in something else: the job, and not its events."""
    found = []
    for row in rows:
        key = row.__mapper__.primary_key_from_instance(row)
        if len(key) == 1:
            found.append((str(key[0]), row.id if isinstance(row, Project) else getattr(row, "project_id", None)))
    return found
