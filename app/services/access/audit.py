"""Reading the audit log."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.db.access import audit
from app.db.tables import AuditEntry
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest


def page(session: Session, limit: int, after: str | None, before: str | None, **filters: Any) -> list[AuditEntry]:
    """Newest first, with the filters of app.db.access.audit. Raises BadRequest for an unknown `after` or `before`."""
    after_entry, before_entry = _cursor(session, "after", after), _cursor(session, "before", before)
    return audit.page(session, limit, after_entry, before_entry, **filters)


def _cursor(session: Session, param: str, entry_id: str | None) -> AuditEntry | None:
    entry = audit.get(session, entry_id) if entry_id is not None else None
    if entry_id is not None and entry is None:
        item = "last item of the page before" if param == "after" else "first item of the page after"
        raise BadRequest(f"{param}: there is no entry {as_json(entry_id)}; give the id of the {item}", param)
    return entry
