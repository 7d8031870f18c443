"""/healthz and /readyz, without a key; for admins the status, retention rules, secrets and the audit log."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator

from app.api.auth import AUTHENTICATED, CallerDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.common import Body, UnixSeconds, WholeList, list_of, utc_datetime
from app.api.schemas.operations import (
    AuditBody,
    ChangeRetention,
    EncryptionKeyBody,
    RetentionRuleBody,
    RotationBody,
    SecretList,
    StatusBody,
    changes_of,
)
from app.api.schemas.queue import WorkerBody
from app.api.transport.json_body import JsonBody
from app.api.transport.pagination import After, Limit, list_page
from app.db import encryption
from app.services import queue
from app.services.access import audit
from app.services.operations import retention, secrets, status

health = APIRouter(tags=["Health"])


class Alive(Body):
    status: Literal["ok"]


class ReadinessCheck(Body):
    ok: bool
    """Whether the check passed."""
    required: bool
    """Whether the service is not ready if this check fails."""
    detail: str
    """The result in words."""


class Readiness(Body):
    status: Literal["ready", "not ready"]
    checks: dict[str, ReadinessCheck]
    """One check for each dependency of the service."""


@health.get("/healthz", response_model=Alive, summary="Is the process alive?")
async def healthz() -> Any:
    """Checks nothing else: for a supervisor that restarts a stuck process. Needs no key."""
    return {"status": "ok"}


@health.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not ready; `checks` gives the reason."}},
    summary="Is the service ready?",
)
def readyz(app_state: AppStateDep, response: Response) -> Any:
    """200 if every required check passes, each within five seconds. The broker and free disk space are reported, but
    not required: jobs are accepted without the one, and files are read without the other."""
    checks = app_state.health_checks.run()
    is_ready = all(check.ok for check in checks if check.required)
    response.status_code = 200 if is_ready else 503
    return {
        "status": "ready" if is_ready else "not ready",
        "checks": {check.name: check for check in checks},
    }


@health.get("/v1/organization/status", response_model=StatusBody, summary="Show the status of the service")
def show_status(caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Whether the service is healthy and what to do if not; workers, queue, the jobs that failed within the last day,
    storage by project, and the last backup."""
    checks, settings = app_state.health_checks.run(), app_state.settings
    return status.view(session, caller.project_id, checks, settings.data_dir, settings.encryption_keys)


organization = APIRouter(
    prefix="/v1/organization", tags=["Projects and keys"], dependencies=[AUTHENTICATED], route_class=IdempotentRoute
)


@organization.post("/workers/{worker_id}/resume", response_model=WorkerBody, summary="Put a worker back into service")
def resume_worker(worker_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """After its GPU works again. A worker is named by `id`, by `name`, or by the part of `name` before `#`, which
    restarts keep; one that is in service stays so."""
    return queue.resume_worker(session, caller.project_id, worker_id)


@organization.get(
    "/retention_rules", response_model=list_of(RetentionRuleBody, WholeList), summary="List retention rules"
)
def list_rules(
    session: SessionDep,
    project_id: Annotated[str | None, Query(description="Only rules of this project.")] = None,
    include_due: Annotated[bool, Query(description="Add what each rule deletes now.")] = False,
) -> Any:
    """The rules of every project that is not archived. Without a rule nothing is deleted for its age."""
    return {"data": retention.view(session, project_id, include_due)}


@organization.post(
    "/projects/{project_id}/retention_rules",
    response_model=list_of(RetentionRuleBody, WholeList),
    summary="Change the retention rules of a project",
)
def change_rules(project_id: str, body: JsonBody[ChangeRetention], session: SessionDep) -> Any:
    """Returns all rules of the project as they are then. With `dry_run` they are shown with their effect."""
    apply = retention.preview if body.dry_run else retention.change
    return {"data": apply(session, project_id, changes_of(body))}


MAX_ROTATED = 500  # in one transaction


@organization.get(
    "/secrets", response_model=SecretList, summary="List encrypted secrets and the keys that protect them"
)
def list_secrets(session: SessionDep, app_state: AppStateDep) -> Any:
    """Credentials of delivery targets and signing secrets of webhooks, without the secrets themselves."""
    keys = app_state.settings.encryption_keys
    found = secrets.view(session, keys)
    fingerprints = [encryption.fingerprint(key) for key in keys]
    shown = [
        EncryptionKeyBody(fingerprint=each, encrypts=number == 0, protects=sum(row.key == each for row in found))
        for number, each in enumerate(fingerprints)
    ]
    return {"data": found, "keys": shown}


@organization.post("/secrets/rotate", response_model=RotationBody, summary="Re-encrypt secrets with the first key")
def rotate_secrets(session: SessionDep, app_state: AppStateDep) -> Any:
    """At most 500 at once: repeat the call until nothing remains. An interruption loses nothing."""
    return secrets.rotate(session, app_state.settings.encryption_keys, MAX_ROTATED)


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


@organization.get("/audit_logs", response_model=list_of(AuditBody), summary="List what was changed, and by whom")
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
