"""/v1/organization/audit_logs, for admins."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AfterValidator

from app.api.auth import AUTHENTICATED
from app.api.dependencies import SessionDep
from app.api.schemas.common import UnixSeconds, moment
from app.api.schemas.organization.audit_logs import AuditList, render_entry
from app.api.transport.pagination import After, Limit, list_page
from app.services.access import audit

MAX_ENTRIES = 100


def _no_addresses(values: list[str]) -> list[str]:
    if values:
        raise ValueError("actors are API keys and operators, which have no e-mail address; use actor_ids[]")
    return values


def _no_tenants(value: bool) -> bool:
    if value:
        raise ValueError("there are no tenants here, so no entry is tenant-scoped; leave it out")
    return value


Words = Annotated[list[str], Query(max_length=100)]
Moment = UnixSeconds | None
SECOND, NOTHING = timedelta(seconds=1), timedelta()  # `effective_at` is shown in whole seconds
# OpenAI's clients know these two. Nothing here could match them, so they are refused with the reason.
Addresses = Annotated[list[str], AfterValidator(_no_addresses), Query(alias="actor_emails[]", include_in_schema=False)]
TenantOnly = Annotated[bool, AfterValidator(_no_tenants), Query(alias="tenant_only", include_in_schema=False)]

router = APIRouter(prefix="/v1/organization/audit_logs", tags=["Projects and keys"], dependencies=[AUTHENTICATED])


@router.get("", response_model=AuditList, summary="List what was changed, and by whom")
def list_entries(
    session: SessionDep,
    after: After = None,
    before: Annotated[str | None, Query(description="The id of the first item of the page after.")] = None,
    limit: Limit = 20,
    project_ids: Annotated[Words, Query(alias="project_ids[]")] = [],  # noqa: B006  (FastAPI copies it)
    actor_ids: Annotated[Words, Query(alias="actor_ids[]")] = [],  # noqa: B006
    _actor_emails: Addresses = [],  # noqa: B006
    event_types: Annotated[Words, Query(alias="event_types[]")] = [],  # noqa: B006
    resource_ids: Annotated[Words, Query(alias="resource_ids[]")] = [],  # noqa: B006
    _tenant_only: TenantOnly = False,
    later_than: Annotated[Moment, Query(alias="effective_at[gt]")] = None,
    since: Annotated[Moment, Query(alias="effective_at[gte]")] = None,
    earlier_than: Annotated[Moment, Query(alias="effective_at[lt]")] = None,
    until: Annotated[Moment, Query(alias="effective_at[lte]")] = None,
) -> Any:
    """Newest first: every call and every operator's command that changed something."""
    limit = min(limit, MAX_ENTRIES)
    rows = audit.page(
        session,
        limit + 1,
        after,
        before,
        project_ids=project_ids,
        actor_ids=actor_ids,
        actions=event_types,
        object_ids=resource_ids,
        since=max(_moments((later_than, SECOND), (since, NOTHING)), default=None),
        until=min(_moments((earlier_than, NOTHING), (until, SECOND)), default=None),
    )
    return list_page(rows, limit, render_entry)


def _moments(*bounds: tuple[int | None, timedelta]) -> list[datetime]:
    """Those that are given, in the log's own resolution, which is finer than whole seconds."""
    return [moment(seconds) + offset for seconds, offset in bounds if seconds is not None]
