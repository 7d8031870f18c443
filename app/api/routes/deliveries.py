"""/v1/delivery_targets and /v1/fine_tuning/jobs/{id}/deliveries: where adapters go. Extensions of OpenAI's API."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.api.auth import CallerDep, JobDep
from app.api.dependencies import AppState, AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.common import list_of
from app.api.schemas.deliveries import (
    CreateDelivery,
    CreateDeliveryTarget,
    DeliveryBody,
    DeliveryTargetBody,
    DeliveryTargetDeleted,
    UpdateDeliveryTarget,
)
from app.api.transport.json_body import JsonBody
from app.api.transport.pagination import PageDep, list_page
from app.db.deliveries.deliveries import withdraw
from app.db.tables import Delivery
from app.domain.deliveries.targets import TargetRules
from app.services import resources
from app.services.deliveries import deliveries, targets
from app.services.deliveries.targets import Operator

router = APIRouter(prefix="/v1", tags=["Deliveries"], route_class=IdempotentRoute)


@router.post("/delivery_targets", response_model=DeliveryTargetBody, summary="Create a delivery target")
def create_target(
    body: JsonBody[CreateDeliveryTarget], caller: CallerDep, session: SessionDep, app_state: AppStateDep
) -> Any:
    """Register a directory, inference engines, a bucket or a hub. Credentials are stored encrypted, never returned."""
    return targets.create(session, _operator(app_state), caller.project_id, dict(body))


@router.get("/delivery_targets", response_model=list_of(DeliveryTargetBody), summary="List delivery targets")
def list_targets(caller: CallerDep, session: SessionDep, app_state: AppStateDep, page: PageDep) -> Any:
    """Newest first."""
    keys = app_state.settings.encryption_keys
    rows = [targets.check_credentials(keys, target) for target in targets.page(session, caller.project_id, page)]
    return list_page(rows, page.limit)


@router.get("/delivery_targets/{target_id}", response_model=DeliveryTargetBody, summary="Get a delivery target")
def get_target(target_id: str, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """By its id or its name. `credentials` has the names of those that are stored."""
    target = targets.get(session, caller.project_id, target_id)
    return targets.check_credentials(app_state.settings.encryption_keys, target)


@router.post(
    "/delivery_targets/{target_id}",
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


@router.delete(
    "/delivery_targets/{target_id}", response_model=DeliveryTargetDeleted, summary="Delete a delivery target"
)
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


@router.post("/fine_tuning/jobs/{job_id}/deliveries", response_model=DeliveryBody, summary="Deliver an adapter")
def create_delivery(body: JsonBody[CreateDelivery], job: JobDep, session: SessionDep) -> Any:
    """Deliver the result, or a kept `checkpoint`, to a target. A repeated call delivers it again."""
    return deliveries.create(session, job, body.target, body.checkpoint)


@router.get(
    "/fine_tuning/jobs/{job_id}/deliveries", response_model=list_of(DeliveryBody), summary="List deliveries of a job"
)
def list_deliveries(job: JobDep, session: SessionDep, page: PageDep) -> Any:
    """Newest first."""
    return list_page(resources.page(session, Delivery, *page, Delivery.job_id == job.id), page.limit)


@router.get(
    "/fine_tuning/jobs/{job_id}/deliveries/{delivery_id}",
    response_model=DeliveryBody,
    summary="Get a delivery of a job",
)
def get_delivery(delivery_id: str, job: JobDep, session: SessionDep) -> Any:
    """Its status, the error of its last attempt, what the target has, and the check of what it serves."""
    return resources.get(session, Delivery, delivery_id, Delivery.job_id == job.id, param="delivery_id")


@router.delete(
    "/fine_tuning/jobs/{job_id}/deliveries/{delivery_id}",
    response_model=DeliveryBody,
    summary="Withdraw a delivery of a job",
)
def withdraw_delivery(delivery_id: str, job: JobDep, session: SessionDep) -> Any:
    """Remove the adapter from the target; the model stays. Deleting the model withdraws all its deliveries."""
    delivery = get_delivery(delivery_id, job, session)
    withdraw(session, delivery)
    return delivery
