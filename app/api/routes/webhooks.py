"""/v1/webhook_endpoints: OpenAI's calls, and extensions: deliveries and redelivery."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.concurrency import run_in_threadpool

from app.api.auth import CallerDep
from app.api.dependencies import AppState, AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.common import list_of
from app.api.schemas.webhooks import (
    CreateWebhookEndpoint,
    DeliveryState,
    RotateSecret,
    TestWebhookEndpoint,
    UpdateWebhookEndpoint,
    WebhookDeliveryBody,
    WebhookEndpointBody,
    WebhookEndpointDeleted,
    WebhookEndpointTestResult,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
)
from app.api.transport.json_body import JsonBody, OptionalJsonBody
from app.api.transport.pagination import PageDep, list_page
from app.db.engine import transaction
from app.db.tables import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from app.domain.webhooks import EVENT_TYPES
from app.errors import BadRequest, Unavailable
from app.services import resources, webhooks
from app.services.webhooks import EndpointRules

POLL_INTERVAL_SECONDS = 0.2
SENDER_MARGIN_SECONDS = 10.0  # in addition to the timeout of one attempt
SELECT_ATTEMPT = "SELECT status_code, error FROM webhook_attempts WHERE delivery_id = %(id)s"

router = APIRouter(prefix="/v1", tags=["Webhooks"], route_class=IdempotentRoute)


def find_endpoint(endpoint_id: str, caller: CallerDep, session: SessionDep) -> WebhookEndpoint:
    """The endpoint of the path, which belongs to the caller's project. Raises NotFound."""
    return webhooks.get(session, caller.project_id, endpoint_id)


EndpointDep = Annotated[WebhookEndpoint, Depends(find_endpoint)]


@router.post(
    "/webhook_endpoints",
    response_model=WebhookEndpointWithSecret,
    summary="Create a webhook endpoint",
)
def create_endpoint(
    body: JsonBody[CreateWebhookEndpoint], caller: CallerDep, session: SessionDep, app_state: AppStateDep
) -> Any:
    """The response to this call and to a rotation contains `signing_secret`; no other response does."""
    return webhooks.create(session, _rules(app_state), caller.project_id, **body.model_dump())


@router.get("/webhook_endpoints", response_model=list_of(WebhookEndpointBody), summary="List webhook endpoints")
def list_endpoints(caller: CallerDep, session: SessionDep, page: PageDep) -> Any:
    """Newest first."""
    of_project = WebhookEndpoint.project_id == caller.project_id
    return list_page(resources.page(session, WebhookEndpoint, *page, of_project), page.limit)


@router.get("/webhook_event_types", response_model=WebhookEventTypeList, summary="List webhook event types")
def list_event_types(_caller: CallerDep) -> Any:
    """All event types that can be sent to an endpoint."""
    return WebhookEventTypeList(data=list(EVENT_TYPES))


@router.get("/webhook_endpoints/{endpoint_id}", response_model=WebhookEndpointBody, summary="Get a webhook endpoint")
def get_endpoint(endpoint: EndpointDep) -> Any:
    """Event types and state of an endpoint, and the end of its secret."""
    return endpoint


@router.post(
    "/webhook_endpoints/{endpoint_id}",
    response_model=WebhookEndpointBody,
    summary="Change a webhook endpoint",
)
def update_endpoint(
    endpoint_id: str,
    body: JsonBody[UpdateWebhookEndpoint],
    caller: CallerDep,
    session: SessionDep,
    app_state: AppStateDep,
) -> Any:
    """Absent fields keep their values. Enabling an endpoint again sends its pending deliveries."""
    changes = body.model_dump(exclude_none=True)
    return webhooks.change(session, _rules(app_state), caller.project_id, endpoint_id, changes)


@router.delete(
    "/webhook_endpoints/{endpoint_id}", response_model=WebhookEndpointDeleted, summary="Delete a webhook endpoint"
)
def delete_endpoint(endpoint: EndpointDep, session: SessionDep) -> Any:
    """Its deliveries are deleted too, including pending ones."""
    session.delete(endpoint)
    return WebhookEndpointDeleted(id=endpoint.id)


@router.post(
    "/webhook_endpoints/{endpoint_id}/rotate_secret",
    response_model=WebhookEndpointWithSecret,
    summary="Rotate the secret of a webhook endpoint",
)
def rotate_secret(
    endpoint_id: str,
    body: OptionalJsonBody[RotateSecret],
    caller: CallerDep,
    session: SessionDep,
    app_state: AppStateDep,
) -> Any:
    """With `keep_old_secret_active_for_24_hours`, messages are signed with both secrets for a day."""
    keep_old = body.keep_old_secret_active_for_24_hours
    return webhooks.rotate_secret(session, _rules(app_state), caller.project_id, endpoint_id, keep_old)


@router.post(
    "/webhook_endpoints/{endpoint_id}/test",
    response_model=WebhookEndpointTestResult,
    summary="Send a test to a webhook endpoint",
)
async def send_test(
    endpoint_id: str, body: JsonBody[TestWebhookEndpoint], caller: CallerDep, app_state: AppStateDep
) -> Any:
    """Send one signed sample event, once, and return the endpoint's response status."""
    delivery = await run_in_threadpool(_begin_test, app_state, caller.project_id, endpoint_id, body.event_type)
    attempt = await _wait_for_attempt(app_state, delivery)
    if attempt.status_code is None:
        raise BadRequest(f"The test did not reach {endpoint_id}: {attempt.error}", code="webhook_unreachable")
    return WebhookEndpointTestResult(
        webhook_endpoint_id=endpoint_id,
        event_type=body.event_type,
        status_code=attempt.status_code,
        delivery_id=delivery.id,
    )


@router.get(
    "/webhook_endpoints/{endpoint_id}/deliveries",
    response_model=list_of(WebhookDeliveryBody),
    summary="List deliveries of a webhook endpoint",
)
def list_deliveries(
    endpoint: EndpointDep,
    session: SessionDep,
    page: PageDep,
    status: Annotated[DeliveryState | None, Query(description="Only deliveries with this status.")] = None,
) -> Any:
    """Newest first, each with the result of every attempt."""
    only = (WebhookDelivery.state == status,) if status is not None else ()
    of_endpoint = WebhookDelivery.endpoint_id == endpoint.id
    return list_page(resources.page(session, WebhookDelivery, *page, of_endpoint, only=only), page.limit)


@router.get(
    "/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}",
    response_model=WebhookDeliveryBody,
    summary="Get a delivery of a webhook endpoint",
)
def get_delivery(delivery_id: str, endpoint: EndpointDep, session: SessionDep) -> Any:
    """A delivery with the result of every attempt. Deliveries are kept for 30 days."""
    of_endpoint = WebhookDelivery.endpoint_id == endpoint.id
    return resources.get(session, WebhookDelivery, delivery_id, of_endpoint, param="delivery_id")


@router.post(
    "/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/redeliver",
    response_model=WebhookDeliveryBody,
    summary="Deliver an event again",
)
def redeliver(delivery_id: str, endpoint: EndpointDep, session: SessionDep) -> Any:
    """Send the same event with the same `webhook-id` at once, then by the retry schedule, whatever its status is."""
    return webhooks.redeliver(session, endpoint, get_delivery(delivery_id, endpoint, session))


def _rules(app_state: AppState) -> EndpointRules:
    settings = app_state.settings
    return EndpointRules(settings.webhook_allow_http, settings.webhook_networks, settings.encryption_keys)


def _begin_test(app_state: AppState, project_id: str, endpoint_id: str, event_type: str) -> WebhookDelivery:
    with transaction(app_state.sessions) as session:
        return webhooks.create_test_delivery(session, project_id, endpoint_id, event_type)


async def _wait_for_attempt(app_state: AppState, delivery: WebhookDelivery) -> WebhookAttempt:
    """Poll for the result of the attempt that a webhook sender makes, without holding a thread or a connection.

    Raises Unavailable if no sender records an attempt in time.
    """
    deadline = time.monotonic() + app_state.settings.webhook_timeout_seconds + SENDER_MARGIN_SECONDS
    while (row := await app_state.connections.fetch_one(SELECT_ATTEMPT, {"id": delivery.id})) is None:
        if time.monotonic() > deadline:
            raise Unavailable("No webhook sender processed the test; `python -m worker.webhooks` must be running.")
        await asyncio.sleep(POLL_INTERVAL_SECONDS)
    attempt: WebhookAttempt = row
    return attempt
