"""/v1/organization/audit_logs, for admins."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AfterValidator

from app.api.auth import AUTHENTICATED
from app.api.dependencies import SessionDep
from app.api.schemas.common import UnixSeconds, utc_datetime
from app.api.schemas.operations import AuditList
from app.api.transport.pagination import After, Limit, list_page
from app.services.access import audit

MAX_ENTRIES = 100


def _refuse_emails(values: list[str]) -> list[str]:
    if values:
        raise ValueError("actors are API keys and operators, which have no e-mail address; use actor_ids[] instead")
    return values


def _refuse_tenant_only(value: bool) -> bool:
    if value:
        raise ValueError("no entry is tenant-scoped, as this server has no tenants; omit the parameter")
    return value


Filter = Annotated[list[str], Query(max_length=100)]
Seconds = UnixSeconds | None
ONE_SECOND, NO_OFFSET = timedelta(seconds=1), timedelta()  # `effective_at` is shown in whole seconds
# OpenAI's clients have these two filters. No entry can match them, so they are refused with the reason.
Emails = Annotated[list[str], AfterValidator(_refuse_emails), Query(alias="actor_emails[]", include_in_schema=False)]
TenantOnly = Annotated[bool, AfterValidator(_refuse_tenant_only), Query(alias="tenant_only", include_in_schema=False)]

router = APIRouter(prefix="/v1/organization/audit_logs", tags=["Projects and keys"], dependencies=[AUTHENTICATED])


@router.get("", response_model=AuditList, summary="List what was changed, and by whom")
def list_entries(
    session: SessionDep,
    after: After = None,
    before: Annotated[str | None, Query(description="The id of the first item of the next page.")] = None,
    limit: Limit = 20,
    project_ids: Annotated[Filter, Query(alias="project_ids[]")] = [],  # noqa: B006  (FastAPI copies it)
    actor_ids: Annotated[Filter, Query(alias="actor_ids[]")] = [],  # noqa: B006
    _actor_emails: Emails = [],  # noqa: B006
    event_types: Annotated[Filter, Query(alias="event_types[]")] = [],  # noqa: B006
    resource_ids: Annotated[Filter, Query(alias="resource_ids[]")] = [],  # noqa: B006
    _tenant_only: TenantOnly = False,
    later_than: Annotated[Seconds, Query(alias="effective_at[gt]")] = None,
    since: Annotated[Seconds, Query(alias="effective_at[gte]")] = None,
    earlier_than: Annotated[Seconds, Query(alias="effective_at[lt]")] = None,
    until: Annotated[Seconds, Query(alias="effective_at[lte]")] = None,
) -> Any:
    """Newest first: every API call and every operator's command that changed something."""
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
        since=max(_bounds((later_than, ONE_SECOND), (since, NO_OFFSET)), default=None),
        until=min(_bounds((earlier_than, NO_OFFSET), (until, ONE_SECOND)), default=None),
    )
    return list_page(rows, limit)


def _bounds(*bounds: tuple[int | None, timedelta]) -> list[datetime]:
    """The bounds that are set, with the log's resolution, which is finer than whole seconds."""
    return [utc_datetime(seconds) + offset for seconds, offset in bounds if seconds is not None]
