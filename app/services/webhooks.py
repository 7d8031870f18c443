"""Use cases of webhook endpoints and deliveries, which worker.webhooks sends. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from app.db.tables import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from app.db.webhooks import deliveries
from app.db.webhooks import endpoints as webhooks
from app.domain.access.outbound_networks import Network
from app.domain.error_text.json_text import as_json, unquoted
from app.domain.webhooks import (
    DISABLED_BY_REQUEST,
    EVENT_TYPES,
    JOB_EVENT,
    check_event_types,
    check_url,
    new_secret,
)
from app.errors import BadRequest, NotFound, combine_errors
from app.services.access import quotas
from app.services.operations.copies import refuse_in_copy

MAX_ENDPOINTS = 50
SAMPLE_JOB = "ftjob-sample"


@dataclass(frozen=True)
class EndpointRules:
    """The URLs that the operator allows: plain HTTP, and private networks; and the keys that encrypt secrets."""

    allow_http: bool
    networks: Sequence[Network]
    encryption_keys: Sequence[str] = ()


@dataclass(frozen=True)
class EndpointChanges:
    """Settings of an endpoint to change; None leaves one unchanged."""

    name: str | None = None
    url: str | None = None
    event_types: list[str] | None = None
    enabled: bool | None = None


@dataclass(frozen=True)
class WebhookDeliveryView:
    delivery: WebhookDelivery
    attempts: list[WebhookAttempt]  # latest first


def create(
    session: Session, rules: EndpointRules, project_id: str, changes: EndpointChanges
) -> tuple[WebhookEndpoint, str]:
    """Create an endpoint. Returns it with its secret. Raises BadRequest with all problems, QuotaExceeded."""
    changes = _validated(rules, changes)
    remedy = "delete an endpoint that is not needed"
    quotas.require_room(session, project_id, "max_webhook_endpoints", MAX_ENDPOINTS, webhooks.count, remedy)
    types = check_event_types(changes.event_types or [])
    secret, name, url = new_secret(), changes.name or "", changes.url or ""
    is_enabled, keys = changes.enabled is not False, rules.encryption_keys
    return webhooks.insert(session, project_id, name, url, types, secret, is_enabled, keys), secret


def get(session: Session, project_id: str, endpoint_id: str, lock: bool = False) -> WebhookEndpoint:
    endpoint = webhooks.get(session, project_id, endpoint_id, lock)
    if endpoint is None:
        raise NotFound(f"No such webhook endpoint: {unquoted(endpoint_id)}", "id")
    return endpoint


def page(session: Session, project_id: str, limit: int, after: str | None) -> list[WebhookEndpoint]:
    last = webhooks.get(session, project_id, after) if after is not None else None
    if after is not None and last is None:
        raise _unknown_cursor("webhook endpoint", after)
    return webhooks.page(session, project_id, limit, last)


def change(
    session: Session, rules: EndpointRules, project_id: str, endpoint_id: str, changes: EndpointChanges
) -> WebhookEndpoint:
    """Change the settings that differ from the stored ones. Raises NotFound, and BadRequest with all problems."""
    endpoint = get(session, project_id, endpoint_id, lock=True)
    changes = _validated(rules, changes)
    values: dict[str, Any] = {"name": changes.name, "url": changes.url}
    if changes.event_types is not None:
        values["event_types"] = check_event_types(changes.event_types)
    new_values = {name: value for name, value in values.items() if value not in (None, getattr(endpoint, name))}
    if new_values:
        endpoint = webhooks.change(session, endpoint, **new_values)
    if changes.enabled is None or changes.enabled == endpoint.enabled:
        return endpoint
    return (
        webhooks.enable(session, endpoint)
        if changes.enabled
        else webhooks.disable(session, endpoint.id, DISABLED_BY_REQUEST)
    )


def delete(session: Session, project_id: str, endpoint_id: str) -> None:
    webhooks.delete_endpoint(session, get(session, project_id, endpoint_id))


def rotate_secret(
    session: Session, rules: EndpointRules, project_id: str, endpoint_id: str, keep_old: bool
) -> tuple[WebhookEndpoint, str]:
    """Replace the secret. Returns the endpoint with the new one. Raises NotFound."""
    endpoint, secret = get(session, project_id, endpoint_id, lock=True), new_secret()
    return webhooks.rotate(session, endpoint, secret, keep_old, rules.encryption_keys), secret


def create_test_delivery(session: Session, project_id: str, endpoint_id: str, event_type: str) -> WebhookDelivery:
    """Create a test delivery, which is attempted once, also for a disabled endpoint."""
    endpoint = get(session, project_id, endpoint_id)
    refuse_in_copy(session, "sends no events")
    check_event_types([event_type], "event_type")
    sample = {"id": SAMPLE_JOB if event_type.startswith(JOB_EVENT) else endpoint.id}
    return deliveries.add_test(session, endpoint, event_type, sample)


def delivery_page(
    session: Session, project_id: str, endpoint_id: str, limit: int, after: str | None, state: deliveries.State | None
) -> list[WebhookDeliveryView]:
    endpoint = get(session, project_id, endpoint_id)
    last = deliveries.get(session, endpoint.id, after) if after is not None else None
    if after is not None and last is None:
        raise _unknown_cursor("delivery", after)
    return _views(session, deliveries.page(session, endpoint.id, limit, last, state))


def delivery(session: Session, project_id: str, endpoint_id: str, delivery_id: str) -> WebhookDeliveryView:
    return _views(session, [_get_delivery(session, project_id, endpoint_id, delivery_id)])[0]


def redeliver(session: Session, project_id: str, endpoint_id: str, delivery_id: str) -> WebhookDeliveryView:
    """Deliver the same event again with the same id, from the start of the retry schedule."""
    delivery_row = _get_delivery(session, project_id, endpoint_id, delivery_id)
    if not get(session, project_id, endpoint_id).enabled:
        raise BadRequest(f"Endpoint {endpoint_id} is disabled; enable it first.", code="invalid_endpoint_state")
    if delivery_row.is_test:
        raise BadRequest(f"Delivery {delivery_id} is a test; send another test.", code="invalid_endpoint_state")
    return _views(session, [deliveries.redeliver(session, delivery_row)])[0]


def event_types() -> list[str]:
    return list(EVENT_TYPES)


def _validated(rules: EndpointRules, changes: EndpointChanges) -> EndpointChanges:
    """The changes with a normalized URL. Raises BadRequest with all problems."""
    problems = []
    try:
        if changes.url is not None:
            changes = replace(changes, url=check_url(changes.url, rules.allow_http, rules.networks))
    except BadRequest as problem:
        problems.append(problem)
    try:
        if changes.event_types is not None:
            check_event_types(changes.event_types)
    except BadRequest as problem:
        problems.append(problem)
    if problems:
        raise combine_errors(problems)
    return changes


def _get_delivery(session: Session, project_id: str, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
    delivery_row = deliveries.get(session, get(session, project_id, endpoint_id).id, delivery_id)
    if delivery_row is None:
        raise NotFound(f"No such delivery: {unquoted(delivery_id)}", "delivery_id")
    return delivery_row


def _views(session: Session, page: list[WebhookDelivery]) -> list[WebhookDeliveryView]:
    attempts = deliveries.attempts(session, [one.id for one in page])
    return [WebhookDeliveryView(one, attempts[one.id]) for one in page]


def _unknown_cursor(kind: str, after: str) -> BadRequest:
    text = f"after: there is no {kind} {as_json(after)} here; give the id of the last item of the page before"
    return BadRequest(text, "after")
