"""Bodies of webhook endpoints, in OpenAI's shape with extensions, and of deliveries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from app.api.schemas.common import Body, Deleted, Strict, UnixTime, WholeList
from app.domain import webhooks
from app.domain.webhooks import EVENT_TYPES

EventType = Annotated[str, WithJsonSchema({"enum": list(EVENT_TYPES)})]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=100)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Url = Annotated[str, Field(min_length=1, max_length=webhooks.MAX_URL)]
DeliveryState = Literal["pending", "delivered", "failed"]


class CreateWebhookEndpoint(Strict):
    name: Name
    """The display name."""
    url: Url
    """An https URL with a public address, unless the operator allows others."""
    event_types: EventTypes
    """The event types to send; `GET /v1/webhook_event_types` lists them."""
    enabled: bool = True
    """False: nothing is sent until the endpoint is enabled."""


class UpdateWebhookEndpoint(Strict):
    name: Name | None = None
    """The display name."""
    url: Url | None = None
    """An https URL with a public address, unless the operator allows others."""
    event_types: EventTypes | None = None
    """The event types to send; `GET /v1/webhook_event_types` lists them."""
    enabled: bool | None = None
    """True sends the pending deliveries; false keeps them pending."""


class RotateSecret(Strict):
    keep_old_secret_active_for_24_hours: bool = False
    """Sign with both secrets for a day; otherwise the old secret is invalid at once."""


class TestWebhookEndpoint(Strict):
    __test__ = False

    event_type: EventType
    """The event type of the sample."""


class EndpointHealth(Body):
    id: str
    name: str
    """The display name."""
    disabled_reason: str | None
    """Why it is disabled: by request, after a 410 response, or after days of failures; null: it is enabled."""
    failing_since: UnixTime | None
    """The first failure after the last success, in seconds since 1970; null: no failure since."""


class WebhookEndpointBody(EndpointHealth):
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: UnixTime
    updated_at: UnixTime
    """The last change, in seconds since 1970."""
    url: str
    """Where messages are sent."""
    event_types: list[str]
    """The event types that are sent to this endpoint."""
    signing_secret_hint: str
    """The last characters of the secret, to recognize it by."""
    old_secret_active_until: UnixTime | None = Field(validation_alias="previous_secret_expires_at")
    """Until when messages are also signed with the previous secret, in seconds since 1970; null: they are not."""
    enabled: bool
    """Whether events are sent to it."""
    disabled_at: UnixTime | None
    """Seconds since 1970; null: the endpoint is enabled."""


class WebhookEndpointWithSecret(WebhookEndpointBody):
    signing_secret: str
    """The secret to verify signatures with.

    Only this response and that of a rotation contain it, and no answer that is repeated for an `Idempotency-Key`.
    """


class WebhookEndpointDeleted(Deleted):
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"


class WebhookEventTypeList(WholeList):
    data: list[str]
    """Names of event types."""


class WebhookEndpointTestResult(Body):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    """The endpoint."""
    event_type: str
    """The event type of the sample."""
    status_code: int
    """The endpoint's status, 2xx or not."""
    success: Literal[True] = True
    """The endpoint responded; `status_code` has its verdict."""
    delivery_id: str
    """The delivery of the sample in the list of deliveries."""


class WebhookAttemptBody(Body):
    attempt: int
    """The number of the attempt, counted from 1."""
    finished_at: UnixTime
    """Seconds since 1970."""
    duration_ms: int
    """Milliseconds until the response."""
    status_code: int | None
    """The status of the response; 2xx is a success. Null: no response."""
    error: str | None
    """Why the attempt failed without a status: no response, or a redirect; else null."""
    response: str | None
    """The first 1,024 bytes of the response; null: no response."""


class WebhookDeliveryBody(Body):
    """`attempts` has the result of each attempt, latest first; `attempt_count` includes those of a crashed sender."""

    id: str
    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    created_at: UnixTime
    webhook_endpoint_id: str = Field(validation_alias="endpoint_id")
    """The endpoint."""
    event_id: str
    """The header `webhook-id`, the same at every attempt."""
    event_type: str
    """The type of the event."""
    data: dict[str, Any]
    """The event's own `data`, such as the job's `id`."""
    test: bool = Field(validation_alias="is_test")
    """Whether it is a requested sample, which is sent once."""
    status: DeliveryState = Field(validation_alias="state")
    """`pending` until a 2xx response, or until ten attempts have failed."""
    attempt_count: int = Field(validation_alias="attempt")
    """The number of attempts."""
    next_attempt_at: UnixTime | None
    """The next attempt, in seconds since 1970; null unless it is pending."""
    finished_at: UnixTime | None
    """When it was delivered or finally failed, in seconds since 1970; null while it is pending."""
    attempts: list[WebhookAttemptBody]
    """The result of each attempt, latest first."""
