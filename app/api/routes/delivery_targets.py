"""/v1/delivery_targets: where finished adapters of a project go. An extension of OpenAI's API."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.api.auth import CallerDep
from app.api.dependencies import AppState, AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.deliveries import (
    CreateDeliveryTarget,
    DeliveryTargetBody,
    DeliveryTargetDeleted,
    DeliveryTargetList,
    UpdateDeliveryTarget,
    render_target,
)
from app.api.transport.json_body import JsonBody
from app.api.transport.pagination import After, Limit, list_page
from app.db.tables import DeliveryTarget
from app.domain.deliveries.targets import TargetRules
from app.services.deliveries import targets
from app.services.deliveries.targets import Operator, TargetChanges

MAX_PAGE = 100

router = APIRouter(prefix="/v1/delivery_targets", tags=["Deliveries"], route_class=IdempotentRoute)


@router.post("", response_model=DeliveryTargetBody, summary="Create a delivery target")
def create_target(
    body: JsonBody[CreateDeliveryTarget], caller: CallerDep, session: SessionDep, app_state: AppStateDep
) -> Any:
    """Register a directory, inference engines, a bucket or a hub. Credentials are stored encrypted, never returned."""
    changes = _changes(body)
    created = targets.create(session, _operator(app_state), caller.project_id, body.name, changes)
    return _rendered(app_state, created)


@router.get("", response_model=DeliveryTargetList, summary="List delivery targets")
def list_targets(
    caller: CallerDep, session: SessionDep, app_state: AppStateDep, after: After = None, limit: Limit = 20
) -> Any:
    """Newest first."""
    limit = min(limit, MAX_PAGE)
    found = targets.page(session, caller.project_id, limit + 1, after)
    return list_page(found, limit, lambda target: _rendered(app_state, target))


@router.get("/{target_id}", response_model=DeliveryTargetBody, summary="Get a delivery target")
def get_target(target_id: str, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """By its id or its name. `credentials` has the names of those that are stored."""
    return _rendered(app_state, targets.get(session, caller.project_id, target_id))


@router.post(
    "/{target_id}",
    response_model=DeliveryTargetBody,
    summary="Change a delivery target",
)
def update_target(
    target_id: str, body: JsonBody[UpdateDeliveryTarget], caller: CallerDep, session: SessionDep, app_state: AppStateDep
) -> Any:
    """Absent fields keep their values. Deliveries that have not succeeded yet are tried again at once."""
    changes = _changes(body)
    return _rendered(app_state, targets.change(session, _operator(app_state), caller.project_id, target_id, changes))


@router.delete("/{target_id}", response_model=DeliveryTargetDeleted, summary="Delete a delivery target")
def delete_target(target_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """Its credentials are deleted and its pending deliveries fail. What was delivered stays there."""
    target = targets.delete(session, caller.project_id, target_id)
    return {"id": target.id, "object": "delivery_target.deleted", "deleted": True}


def _rendered(app_state: AppState, target: DeliveryTarget) -> dict[str, Any]:
    return render_target(target, targets.problem(app_state.settings.encryption_keys, target))


def _changes(parsed: CreateDeliveryTarget | UpdateDeliveryTarget) -> TargetChanges:
    given = parsed.model_dump(include={"served_model", "default"}, exclude_unset=True)
    return TargetChanges(given, parsed.destination, parsed.credentials)


def _operator(app_state: AppState) -> Operator:
    settings = app_state.settings
    rules = TargetRules(
        allow_http=settings.delivery_allow_http,
        networks=settings.delivery_networks,
        directories=settings.delivery_directories,
    )
    return Operator(rules, settings.encryption_keys)
