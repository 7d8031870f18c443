"""Webhook endpoints and deliveries."""

from __future__ import annotations

BY_SCHEMA = {
    "CreateWebhookEndpoint.enabled": "False: nothing is sent to it until it is enabled.",
    "CreateWebhookEndpoint.event_types": "What it is told of; `GET /v1/webhook_event_types` lists them.",
    "CreateWebhookEndpoint.name": "What people call it.",
    "CreateWebhookEndpoint.url": "https, and a public address, unless the operator allows others.",
    "RotateSecret.keep_old_secret_active_for_24_hours": (
        "Sign with both secrets for a day; else the old one is void at once."
    ),
    "TestWebhookEndpoint.event_type": "Of which event a sample is sent.",
    "WebhookAttemptBody.attempt": "Counted from 1.",
    "WebhookAttemptBody.duration_ms": "Until the answer, in milliseconds.",
    "WebhookAttemptBody.error": "Why it failed where no status says so: no answer, or a redirect; else null.",
    "WebhookAttemptBody.finished_at": "Seconds since 1970.",
    "WebhookAttemptBody.response": "The first 1,024 bytes of the answer; null: there was none.",
    "WebhookAttemptBody.status_code": "Of the answer; 2xx is a success. Null: there was none.",
    "WebhookDeliveryBody.attempt_count": "How often it was tried.",
    "WebhookDeliveryBody.attempts": "What came of each try, the latest first.",
    "WebhookDeliveryBody.data": "The event's own `data`, such as the job's `id`.",
    "WebhookDeliveryBody.event_id": "The header `webhook-id`, the same at every try.",
    "WebhookDeliveryBody.event_type": "What happened.",
    "WebhookDeliveryBody.finished_at": (
        "When it was delivered or given up, in seconds since 1970; null while it is pending."
    ),
    "WebhookDeliveryBody.next_attempt_at": "When it is tried next, in seconds since 1970; null unless it is pending.",
    "WebhookDeliveryBody.status": "`pending` until an answer of 2xx, or until ten tries have failed.",
    "WebhookDeliveryBody.test": "A sample that somebody asked for: sent once.",
    "WebhookDeliveryBody.webhook_endpoint_id": "Where it is sent.",
    "WebhookEndpointBody.disabled_at": "Seconds since 1970; null: it is enabled.",
    "WebhookEndpointBody.disabled_reason": (
        "By whom or why: on request, an answer of 410, or days of failures; null: it is enabled."
    ),
    "WebhookEndpointBody.enabled": "Whether anything is sent to it.",
    "WebhookEndpointBody.event_types": "What it is told of.",
    "WebhookEndpointBody.failing_since": (
        "The first failure after the last success, in seconds since 1970; null: nothing has failed since."
    ),
    "WebhookEndpointBody.name": "What people call it.",
    "WebhookEndpointBody.old_secret_active_until": (
        "Until when messages are signed with the secret before, too, in seconds since 1970; null: with one only."
    ),
    "WebhookEndpointBody.signing_secret_hint": "Its end, to recognize it by.",
    "WebhookEndpointBody.updated_at": "Of the last change, in seconds since 1970.",
    "WebhookEndpointBody.url": "Where messages are sent.",
    "WebhookEndpointWithSecret.signing_secret": (
        "What receivers check signatures with. It is shown in this answer and in no other."
    ),
    "WebhookEndpointTestResult.delivery_id": "Its entry in the list of deliveries.",
    "WebhookEndpointTestResult.event_type": "Of which event it was a sample.",
    "WebhookEndpointTestResult.status_code": "What the endpoint answered, 2xx or not.",
    "WebhookEndpointTestResult.success": "The endpoint was reached; `status_code` says what it thinks.",
    "WebhookEndpointTestResult.webhook_endpoint_id": "Where it was sent.",
    "WebhookEventTypeList.data": "Names of events.",
}  # fmt: skip
