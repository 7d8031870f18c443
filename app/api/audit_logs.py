"""/v1/organization/audit_logs, for admins."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.auth import AUTHENTICATED
from app.api.deps import SessionDep
from app.api.pages import After, Limit, envelope
from app.api.schemas.audit import AuditList, render_entry
from app.services import audit

MAX_ENTRIES = 100
MAX_UNIX = 253_402_300_799  # the end of the year 9999

Words = Annotated[list[str], Query(max_length=100)]
Moment = Annotated[int | None, Query(ge=0, le=MAX_UNIX)]

router = APIRouter(prefix="/v1/organization/audit_logs", tags=["Projects and keys"], dependencies=[AUTHENTICATED])


@router.get("", response_model=AuditList, summary="List what was changed, and by whom")
def list_entries(
    session: SessionDep,
    after: After = None,
    limit: Limit = 20,
    project_ids: Annotated[Words, Query(alias="project_ids[]")] = [],  # noqa: B006  (FastAPI copies it)
    actor_ids: Annotated[Words, Query(alias="actor_ids[]")] = [],  # noqa: B006
    event_types: Annotated[Words, Query(alias="event_types[]")] = [],  # noqa: B006
    resource_ids: Annotated[Words, Query(alias="resource_ids[]")] = [],  # noqa: B006
    since: Annotated[Moment, Query(alias="effective_at[gte]")] = None,
    until: Annotated[Moment, Query(alias="effective_at[lt]")] = None,
) -> Any:
    """Newest first: every call and every operator's command that changed something."""
    limit = min(limit, MAX_ENTRIES)
    rows = audit.page(
        session,
        limit + 1,
        after,
        project_ids=project_ids,
        actor_ids=actor_ids,
        actions=event_types,
        object_ids=resource_ids,
        since=_moment(since),
        until=_moment(until),
    )
    return envelope(rows, limit, render_entry)


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
