"""/healthz and /readyz, without a key: liveness and readiness."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response

from app.api.dependencies import AppStateDep
from app.api.schemas.common import Body

router = APIRouter(tags=["Health"])


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


@router.get("/healthz", response_model=Alive, summary="Is the process alive?")
async def healthz() -> Any:
    """Checks nothing else: for a supervisor that restarts a stuck process. Needs no key."""
    return {"status": "ok"}


@router.get(
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
        "checks": {
            check.name: {"ok": check.ok, "required": check.required, "detail": check.detail} for check in checks
        },
    }
