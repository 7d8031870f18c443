"""Reading the audit log."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.db import audit
from app.db.tables import AuditEntry
from app.domain.json_text import shown
from app.errors import BadRequest


def page(session: Session, limit: int, after: str | None, **filters: Any) -> list[AuditEntry]:
    """Newest first; `filters` are those of `app.db.audit.page`. Raises BadRequest for an unknown `after`."""
    last = None
    if after is not None:
        last = audit.get(session, after)
        if last is None:
            text = f"after: there is no entry {shown(after)}; give the id of the last item of the page before"
            raise BadRequest(text, "after")
    return audit.page(session, limit, last, **filters)
