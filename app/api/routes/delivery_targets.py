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
)
from app.api.transport.json_body import JsonBody
from app.api.transport.pagination import PageDep, list_page
from app.domain.deliveries.targets import TargetRules
from app.services.deliveries import targets
from app.services.deliveries.targets import Operator

router = APIRouter(prefix="/v1/delivery_targets", tags=["Deliveries"], route_class=IdempotentRoute)


@router.post("", response_model=DeliveryTargetBody, summary="Create a delivery target")
def create_target(
    body: JsonBody[CreateDeliveryTarget], caller: CallerDep, session: SessionDep, app_state: AppStateDep
) -> Any:
    """Register a directory, inference engines, a bucket or a hub. Credentials are stored encrypted, never returned."""
    given = dict(body)
    return targets.create(session, _operator(app_state), caller.project_id, given)


@router.get("", response_model=DeliveryTargetList, summary="List delivery targets")
def list_targets(caller: CallerDep, session: SessionDep, app_state: AppStateDep, page: PageDep) -> Any:
    """Newest first."""
    keys = app_state.settings.encryption_keys
    rows = [targets.check_credentials(keys, target) for target in targets.page(session, caller.project_id, page)]
    return list_page(rows, page.limit)


@router.get("/{target_id}", response_model=DeliveryTargetBody, summary="Get a delivery target")
def get_target(target_id: str, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """By its id or its name. `credentials` has the names of those that are stored."""
    target = targets.get(session, caller.project_id, target_id)
    return targets.check_credentials(app_state.settings.encryption_keys, target)


@router.post(
    "/{target_id}",
    response_model=DeliveryTargetBody,
    summary="Change a delivery target",
)
def update_target(
    target_id: str, body: JsonBody[UpdateDeliveryTarget], caller: CallerDep, session: SessionDep, app_state: AppStateDep
) -> Any:
    """Absent fields keep their values. Deliveries that have not succeeded yet are tried again at once."""
    given = {name: value for name, value in body if name in body.model_fields_set}
    target = targets.change(session, _operator(app_state), caller.project_id, target_id, given)
    return targets.check_credentials(app_state.settings.encryption_keys, target)


@router.delete("/{target_id}", response_model=DeliveryTargetDeleted, summary="Delete a delivery target")
def delete_target(target_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """Its credentials are deleted and its pending deliveries fail. What was delivered stays there."""
    return DeliveryTargetDeleted(id=targets.delete(session, caller.project_id, target_id).id)


def _operator(app_state: AppState) -> Operator:
    settings = app_state.settings
    rules = TargetRules(
        allow_http=settings.delivery_allow_http,
        networks=settings.delivery_networks,
        directories=settings.delivery_directories,
    )
    return Operator(rules, settings.encryption_keys)
