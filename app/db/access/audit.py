"""The audit log: one row for each transaction that changed something, written in that transaction.

The entry point (a request, a command) sets the actor with `audited_as`; the session has the changes.
Sessions of a factory that was given to `audit_sessions` write the entry at commit, so no route and no use case does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import event, insert
from sqlalchemy.orm import ORMExecuteState, Session

from app.db.engine import Sessions
from app.db.ids import new_id
from app.db.tables import AuditEntry, Project
from app.db.tables.base import core_table

ActorType = Literal["api_key", "operator", "system"]
CHANGED_KEY = "audit.changed"  # in session.info: [(id, project id)] of changed rows; absent before the first write
MAX_OBJECTS = 20
INSERT = insert(core_table(AuditEntry))  # executed without the ORM, so that an entry causes no entry


@dataclass
class AuditContext:
    """Actor, action and origin of a change, filled in step by step: a request has an address before its key is read.

    Without an actor no entry is written.
    """

    request_id: str | None = None
    address: str | None = None
    action: str | None = None
    actor_type: ActorType = "api_key"
    actor_id: str | None = None
    project_id: str | None = None
    object_ids: list[str] = field(default_factory=list)
    is_over: bool = False  # a background task that outlives its request has no actor

    @property
    def is_attributed(self) -> bool:
        return self.action is not None and self.actor_id is not None and not self.is_over


CURRENT_CONTEXT: ContextVar[AuditContext | None] = ContextVar("audit_context", default=None)


@contextmanager
def audited_as(context: AuditContext) -> Iterator[AuditContext]:
    """Attribute the changes made within the block to `context`."""
    token = CURRENT_CONTEXT.set(context)
    try:
        yield context
    finally:
        context.is_over = True
        CURRENT_CONTEXT.reset(token)


def request_id() -> str | None:
    """The id of the request that this thread or task handles."""
    context = CURRENT_CONTEXT.get()
    return None if context is None else context.request_id


def audit_sessions(sessions: Sessions) -> None:
    """Write an audit entry for each transaction of these sessions that changes something within `audited_as`."""
    event.listen(sessions, "do_orm_execute", _on_statement)
    event.listen(sessions, "before_flush", _on_flush)
    event.listen(sessions, "before_commit", _on_commit)
    event.listen(sessions, "after_rollback", _on_rollback)


def add_object(object_id: str, project_id: str | None) -> None:
    """Add the id of an object that a statement changes: the session has only the ids of changed ORM objects."""
    context = CURRENT_CONTEXT.get()
    if context is not None:
        context.object_ids.append(object_id)
        context.project_id = context.project_id or project_id


def record(session: Session, object_id: str, project_id: str | None = None) -> None:
    """Write an entry for an action whose statement the session does not know, or that changes no row (a backup)."""
    session.info.setdefault(CHANGED_KEY, []).append((object_id, project_id))


def _on_statement(state: ORMExecuteState) -> None:
    if state.is_insert or state.is_update or state.is_delete:
        state.session.info.setdefault(CHANGED_KEY, [])


def _on_flush(session: Session, _context: Any, _instances: Any) -> None:
    """Record changed rows before the flush; after it, a column that the database computes looks unmodified."""
    modified = [row for row in session.dirty if session.is_modified(row)]
    rows = [*session.new, *modified, *session.deleted]
    if rows:
        session.info.setdefault(CHANGED_KEY, []).extend(_changed_ids(rows))


def _on_commit(session: Session) -> None:
    context = CURRENT_CONTEXT.get()
    if context is None or not context.is_attributed:
        return
    session.flush()
    changed: list[tuple[str, str | None]] | None = session.info.pop(CHANGED_KEY, None)
    if changed is not None:
        session.connection().execute(INSERT, _entry(context, changed))


def _on_rollback(session: Session) -> None:
    session.info.pop(CHANGED_KEY, None)


def _entry(context: AuditContext, changed: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    project_ids = [context.project_id, *(project_id for _, project_id in changed)]
    return {
        "id": new_id("audit_log"),
        "project_id": next((project_id for project_id in project_ids if project_id is not None), None),
        "action": context.action,
        "actor_type": context.actor_type,
        "actor_id": context.actor_id,
        "object_ids": list(dict.fromkeys([*context.object_ids, *(object_id for object_id, _ in changed)]))[
            :MAX_OBJECTS
        ],
        "address": context.address,
        "request_id": context.request_id,
    }


def _changed_ids(rows: Sequence[Any]) -> list[tuple[str, str | None]]:
    """(id, project id) of the rows with a single-column key: jobs are listed, their events are not."""
    ids = []
    for row in rows:
        key = row.__mapper__.primary_key_from_instance(row)
        if len(key) == 1:
            ids.append((str(key[0]), row.id if isinstance(row, Project) else getattr(row, "project_id", None)))
    return ids
