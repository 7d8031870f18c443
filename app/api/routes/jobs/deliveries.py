"""/v1/fine_tuning/jobs/{id}/deliveries: adapters on their way to delivery targets. An extension of OpenAI's API."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.api.auth import CallerDep
from app.api.dependencies import SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.deliveries import CreateDelivery, DeliveryBody, DeliveryList
from app.api.transport.json_body import JsonBody
from app.api.transport.pagination import After, Limit, list_page
from app.services.deliveries import deliveries

MAX_DELIVERIES = 100

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}/deliveries", tags=["Deliveries"], route_class=IdempotentRoute)


@router.post("", response_model=DeliveryBody, summary="Deliver an adapter")
def create_delivery(job_id: str, body: JsonBody[CreateDelivery], caller: CallerDep, session: SessionDep) -> Any:
    """Deliver the result, or a kept `checkpoint`, to a target. A repeated call delivers it again."""
    return deliveries.create(session, caller.project_id, job_id, body.target, body.checkpoint)


@router.get("", response_model=DeliveryList, summary="List deliveries of a job")
def list_deliveries(job_id: str, caller: CallerDep, session: SessionDep, after: After = None, limit: Limit = 20) -> Any:
    """Newest first."""
    limit = min(limit, MAX_DELIVERIES)
    return list_page(deliveries.page(session, caller.project_id, job_id, limit + 1, after), limit)


@router.get("/{delivery_id}", response_model=DeliveryBody, summary="Get a delivery of a job")
def get_delivery(job_id: str, delivery_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """Its status, the error of its last attempt, what the target has, and the check of what it serves."""
    return deliveries.get(session, caller.project_id, job_id, delivery_id)


@router.delete("/{delivery_id}", response_model=DeliveryBody, summary="Withdraw a delivery of a job")
def withdraw_delivery(job_id: str, delivery_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """Remove the adapter from the target; the model stays. Deleting the model withdraws all its deliveries."""
    return deliveries.withdraw(session, caller.project_id, job_id, delivery_id)
