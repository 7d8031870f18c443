"""Use cases of webhook endpoints and deliveries, which worker.webhooks sends. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.db import encryption
from app.db.ids import new_id
from app.db.operations.status import refuse_in_copy
from app.db.tables import WebhookDelivery, WebhookEndpoint
from app.db.webhooks import deliveries, endpoints
from app.domain.access.outbound_networks import Network
from app.domain.webhooks import (
    DISABLED_BY_REQUEST,
    JOB_EVENT,
    check_event_types,
    check_url,
    new_secret,
    secret_hint,
)
from app.errors import BadRequest, combine_errors
from app.services import resources
from app.services.access import quotas

MAX_ENDPOINTS = 50
PREVIOUS_SECRET_LIFETIME = timedelta(hours=24)  # OpenAI: keep_old_secret_active_for_24_hours
SAMPLE_JOB = "ftjob-sample"


@dataclass(frozen=True)
class EndpointRules:
    """The URLs that the operator allows: plain HTTP, and private networks; and the keys that encrypt secrets."""

    allow_http: bool
    networks: Sequence[Network]
    encryption_keys: Sequence[str] = ()


def create(
    session: Session, rules: EndpointRules, project_id: str, name: str, url: str, event_types: list[str], enabled: bool
) -> WebhookEndpoint:
    """Create an endpoint. Returns it with its secret. Raises BadRequest with all problems, QuotaExceeded."""
    values = _checked(rules, {"name": name, "url": url, "event_types": event_types})
    remedy = "delete an endpoint that is not needed"
    quotas.require_room(session, project_id, "max_webhook_endpoints", MAX_ENDPOINTS, _count, remedy)
    secret = new_secret()
    stored = encryption.protect(rules.encryption_keys, secret)
    endpoint = WebhookEndpoint(
        id=new_id("wh", "_"), project_id=project_id, secret=stored, secret_hint=secret_hint(secret), **values
    )
    resources.store(session, endpoint)
    if not enabled:
        endpoints.disable(session, endpoint.id, f"{DISABLED_BY_REQUEST}, when it was created")
        session.refresh(endpoint)
    endpoint.signing_secret = secret
    return endpoint


def get(session: Session, project_id: str, endpoint_id: str, lock: bool = False) -> WebhookEndpoint:
    return resources.get(session, WebhookEndpoint, endpoint_id, WebhookEndpoint.project_id == project_id, lock=lock)


def change(
    session: Session, rules: EndpointRules, project_id: str, endpoint_id: str, changes: dict[str, Any]
) -> WebhookEndpoint:
    """Change the fields that differ from the stored ones. Raises NotFound, and BadRequest with all problems.

    Enabling sends the pending deliveries, and clears the endpoint's series of failures.
    """
    endpoint = get(session, project_id, endpoint_id, lock=True)
    values = _checked(rules, changes)
    enabled = values.pop("enabled", None)
    values = {name: value for name, value in values.items() if value != getattr(endpoint, name)}
    if enabled is True and not endpoint.enabled:
        values |= endpoints.ENABLED
    if values:
        _update(session, endpoint, values)
    if enabled is False and endpoint.enabled:
        endpoints.disable(session, endpoint.id, DISABLED_BY_REQUEST)
        session.refresh(endpoint)
    return endpoint


def rotate_secret(
    session: Session, rules: EndpointRules, project_id: str, endpoint_id: str, keep_old: bool
) -> WebhookEndpoint:
    """Replace the secret; with `keep_old` the previous one signs as well for PREVIOUS_SECRET_LIFETIME.

    Returns the endpoint with the new one. Raises NotFound.
    """
    endpoint, secret = get(session, project_id, endpoint_id, lock=True), new_secret()
    values: dict[str, Any] = {
        "secret": encryption.protect(rules.encryption_keys, secret),
        "secret_hint": secret_hint(secret),
        "previous_secret": endpoint.secret if keep_old else None,
        "previous_secret_expires_at": func.clock_timestamp() + PREVIOUS_SECRET_LIFETIME if keep_old else None,
    }
    _update(session, endpoint, values)
    endpoint.signing_secret = secret
    return endpoint


def create_test_delivery(session: Session, project_id: str, endpoint_id: str, event_type: str) -> WebhookDelivery:
    """Create a test delivery, which is attempted once, also for a disabled endpoint."""
    endpoint = get(session, project_id, endpoint_id)
    refuse_in_copy(session, "sends no events")
    check_event_types([event_type], "event_type")
    sample = {"id": SAMPLE_JOB if event_type.startswith(JOB_EVENT) else endpoint.id}
    return deliveries.add_test(session, endpoint, event_type, sample)


def redeliver(session: Session, endpoint: WebhookEndpoint, delivery: WebhookDelivery) -> WebhookDelivery:
    """Deliver the same event again with the same id, from the start of the retry schedule. Raises BadRequest."""
    if not endpoint.enabled:
        raise BadRequest(f"Endpoint {endpoint.id} is disabled; enable it first.", code="invalid_endpoint_state")
    if delivery.is_test:
        raise BadRequest(f"Delivery {delivery.id} is a test; send another test.", code="invalid_endpoint_state")
    return deliveries.redeliver(session, delivery)


def _count(session: Session, project_id: str) -> int:
    return resources.count(session, WebhookEndpoint, WebhookEndpoint.project_id == project_id)


def _update(session: Session, endpoint: WebhookEndpoint, values: dict[str, Any]) -> None:
    resources.store(session, endpoint, **values, updated_at=func.clock_timestamp())


def _checked(rules: EndpointRules, values: dict[str, Any]) -> dict[str, Any]:
    """The values with a normalized URL. Raises BadRequest with all problems."""
    problems: list[BadRequest] = []
    checks: dict[str, Callable[[Any], Any]] = {
        "url": lambda url: check_url(url, rules.allow_http, rules.networks),
        "event_types": check_event_types,
    }
    checked = dict(values)
    for name, check in checks.items():
        try:
            if name in values:
                checked[name] = check(values[name])
        except BadRequest as problem:
            problems.append(problem)
    if problems:
        raise combine_errors(problems)
    return checked
