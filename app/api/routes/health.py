"""/healthz and /readyz, without a key: is the process alive, can it do its work?"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response

from app.api.dependencies import AppStateDep
from app.api.schemas.common import Body
from app.services import health

router = APIRouter(tags=["Health"])


class Alive(Body):
    status: Literal["ok"]


class ReadinessCheck(Body):
    ok: bool
    required: bool
    detail: str


class Readiness(Body):
    status: Literal["ready", "not ready"]
    checks: dict[str, ReadinessCheck]


@router.get("/healthz", response_model=Alive, summary="Is the process alive?")
async def healthz() -> Any:
    """Looks at nothing else: for a supervisor that restarts what is stuck. Needs no key."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not ready; `checks` says why."}},
    summary="Can it do its work?",
)
def readyz(app_state: AppStateDep, response: Response) -> Any:
    """200 when every required check is good; the broker is reported, but jobs are accepted without it."""
    checks = health.readiness(app_state.sessions, app_state.storage, app_state.worker_notifier)
    ready = all(check.ok for check in checks if check.required)
    response.status_code = 200 if ready else 503
    return {
        "status": "ready" if ready else "not ready",
        "checks": {
            check.name: {"ok": check.ok, "required": check.required, "detail": check.detail} for check in checks
        },
    }
