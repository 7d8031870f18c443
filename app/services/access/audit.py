"""Reading the audit log, which app.db.access.audit writes."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ARRAY, Text, cast, select
from sqlalchemy.orm import Session

from app.db.tables import AuditEntry
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest


def page(
    session: Session,
    limit: int,
    after: str | None = None,
    before: str | None = None,
    project_ids: Collection[str] = (),
    actor_ids: Collection[str] = (),
    actions: Collection[str] = (),
    object_ids: Collection[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[AuditEntry]:
    """A page of entries, newest first, at most `limit`; an empty filter matches all.

    The caller asks for one entry more than it shows; the last one indicates that there are more. With `before` alone
    the page ends at that entry instead of beginning at the newest one, so the additional entry is the newest.
    Raises BadRequest for an unknown `after` or `before`.
    """
    table, ends_at_before = AuditEntry, before is not None and after is None
    query = select(table).order_by(table.seq if ends_at_before else table.seq.desc()).limit(limit)
    if after is not None:
        query = query.where(table.seq < _number(session, "after", after))
    if before is not None:
        query = query.where(table.seq > _number(session, "before", before))
    for column, values in ((table.project_id, project_ids), (table.actor_id, actor_ids), (table.action, actions)):
        if values:
            query = query.where(column.in_(values))
    if object_ids:
        query = query.where(table.object_ids.has_any(cast(list(object_ids), ARRAY(Text))))
    if since is not None:
        query = query.where(table.created_at >= since)
    if until is not None:
        query = query.where(table.created_at < until)
    rows = list(session.scalars(query))
    return [*reversed(rows[: limit - 1]), *rows[limit - 1 :]] if ends_at_before else rows


def _number(session: Session, param: str, entry_id: str) -> int:
    entry = session.get(AuditEntry, entry_id)
    if entry is None:
        item = "last item of the page before" if param == "after" else "first item of the page after"
        raise BadRequest(f"{param}: there is no entry {as_json(entry_id)}; give the id of the {item}", param)
    return entry.seq
