"""Bodies of webhook endpoints, in OpenAI's shape with extensions, and of deliveries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from app.api.schemas.common import Body, ListBody, unix_seconds, unix_seconds_or_none
from app.api.schemas.jobs.requests import Strict
from app.db.tables import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from app.domain import webhooks
from app.domain.webhooks import EVENT_TYPES
from app.services.webhooks import WebhookDeliveryView

EventType = Annotated[str, WithJsonSchema({"enum": list(EVENT_TYPES)})]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=100)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Url = Annotated[str, Field(min_length=1, max_length=webhooks.MAX_URL)]
DeliveryState = Literal["pending", "delivered", "failed"]


class CreateWebhookEndpoint(Strict):
    name: Name
    url: Url
    event_types: EventTypes
    enabled: bool = True


class UpdateWebhookEndpoint(Strict):
    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    enabled: Annotated[
        bool | None, Field(description="True sends the pending deliveries; false keeps them pending.")
    ] = None


class RotateSecret(Strict):
    keep_old_secret_active_for_24_hours: bool = False


class TestWebhookEndpoint(Strict):
    __test__ = False

    event_type: EventType


class WebhookEndpointBody(Body):
    id: str
    object: Literal["webhook_endpoint"]
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    old_secret_active_until: int | None
    enabled: bool
    disabled_at: int | None
    disabled_reason: str | None
    failing_since: int | None


class WebhookEndpointWithSecret(WebhookEndpointBody):
    signing_secret: str


class WebhookEndpointList(ListBody):
    data: list[WebhookEndpointBody]


class WebhookEndpointDeleted(Body):
    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: Literal[True]


class WebhookEventTypeList(Body):
    object: Literal["list"]
    data: list[str]


class WebhookEndpointTestResult(Body):
    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True]
    delivery_id: str


class WebhookAttemptBody(Body):
    attempt: int
    finished_at: int
    duration_ms: int
    status_code: int | None
    error: str | None
    response: str | None


class WebhookDeliveryBody(Body):
    """`attempts` has the result of each attempt, latest first; `attempt_count` includes those of a crashed sender."""

    id: str
    object: Literal["webhook_endpoint.delivery"]
    created_at: int
    webhook_endpoint_id: str
    event_id: str
    event_type: str
    data: dict[str, Any]
    test: bool
    status: DeliveryState
    attempt_count: int
    next_attempt_at: int | None
    finished_at: int | None
    attempts: list[WebhookAttemptBody]


class WebhookDeliveryList(ListBody):
    data: list[WebhookDeliveryBody]


def render_endpoint(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "created_at": unix_seconds(endpoint.created_at),
        "updated_at": unix_seconds(endpoint.updated_at),
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "signing_secret_hint": endpoint.secret_hint or webhooks.secret_hint(endpoint.secret),
        "old_secret_active_until": unix_seconds_or_none(endpoint.previous_secret_expires_at),
        "enabled": endpoint.enabled,
        "disabled_at": unix_seconds_or_none(endpoint.disabled_at),
        "disabled_reason": endpoint.disabled_reason,
        "failing_since": unix_seconds_or_none(endpoint.failing_since),
    }


def render_with_secret(endpoint: WebhookEndpoint, secret: str) -> dict[str, Any]:
    return render_endpoint(endpoint) | {"signing_secret": secret}


def render_delivery(view: WebhookDeliveryView) -> dict[str, Any]:
    delivery: WebhookDelivery = view.delivery
    return {
        "id": delivery.id,
        "object": "webhook_endpoint.delivery",
        "created_at": unix_seconds(delivery.created_at),
        "webhook_endpoint_id": delivery.endpoint_id,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "data": delivery.data,
        "test": delivery.is_test,
        "status": delivery.state,
        "attempt_count": delivery.attempt,
        "next_attempt_at": unix_seconds_or_none(delivery.next_attempt_at),
        "finished_at": unix_seconds_or_none(delivery.finished_at),
        "attempts": [_attempt(attempt) for attempt in view.attempts],
    }


def _attempt(attempt: WebhookAttempt) -> dict[str, Any]:
    return {
        "attempt": attempt.attempt,
        "finished_at": unix_seconds(attempt.finished_at),
        "duration_ms": attempt.duration_ms,
        "status_code": attempt.status_code,
        "error": attempt.error,
        "response": attempt.response,
    }
