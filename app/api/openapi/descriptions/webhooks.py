"""Descriptions of webhook endpoints and deliveries."""

from __future__ import annotations

BY_SCHEMA = {
    "CreateWebhookEndpoint.enabled": "False: nothing is sent until the endpoint is enabled.",
    "CreateWebhookEndpoint.event_types": "The event types to send; `GET /v1/webhook_event_types` lists them.",
    "CreateWebhookEndpoint.name": "The display name.",
    "CreateWebhookEndpoint.url": "An https URL with a public address, unless the operator allows others.",
    "RotateSecret.keep_old_secret_active_for_24_hours": (
        "Sign with both secrets for a day; otherwise the old secret is invalid at once."
    ),
    "TestWebhookEndpoint.event_type": "The event type of the sample.",
    "WebhookAttemptBody.attempt": "The number of the attempt, counted from 1.",
    "WebhookAttemptBody.duration_ms": "Milliseconds until the response.",
    "WebhookAttemptBody.error": "Why the attempt failed without a status: no response, or a redirect; else null.",
    "WebhookAttemptBody.finished_at": "Seconds since 1970.",
    "WebhookAttemptBody.response": "The first 1,024 bytes of the response; null: no response.",
    "WebhookAttemptBody.status_code": "The status of the response; 2xx is a success. Null: no response.",
    "WebhookDeliveryBody.attempt_count": "The number of attempts.",
    "WebhookDeliveryBody.attempts": "The result of each attempt, latest first.",
    "WebhookDeliveryBody.data": "The event's own `data`, such as the job's `id`.",
    "WebhookDeliveryBody.event_id": "The header `webhook-id`, the same at every attempt.",
    "WebhookDeliveryBody.event_type": "The type of the event.",
    "WebhookDeliveryBody.finished_at": (
        "When it was delivered or finally failed, in seconds since 1970; null while it is pending."
    ),
    "WebhookDeliveryBody.next_attempt_at": "The next attempt, in seconds since 1970; null unless it is pending.",
    "WebhookDeliveryBody.status": "`pending` until a 2xx response, or until ten attempts have failed.",
    "WebhookDeliveryBody.test": "Whether it is a requested sample, which is sent once.",
    "WebhookDeliveryBody.webhook_endpoint_id": "The endpoint.",
    "WebhookEndpointBody.disabled_at": "Seconds since 1970; null: the endpoint is enabled.",
    "WebhookEndpointBody.disabled_reason": (
        "Why it is disabled: by request, after a 410 response, or after days of failures; null: it is enabled."
    ),
    "WebhookEndpointBody.enabled": "Whether events are sent to it.",
    "WebhookEndpointBody.event_types": "The event types that are sent to this endpoint.",
    "WebhookEndpointBody.failing_since": (
        "The first failure after the last success, in seconds since 1970; null: no failure since."
    ),
    "WebhookEndpointBody.name": "The display name.",
    "WebhookEndpointBody.old_secret_active_until": (
        "Until when messages are also signed with the previous secret, in seconds since 1970; null: they are not."
    ),
    "WebhookEndpointBody.signing_secret_hint": "The last characters of the secret, to recognize it by.",
    "WebhookEndpointBody.updated_at": "The last change, in seconds since 1970.",
    "WebhookEndpointBody.url": "Where messages are sent.",
    "WebhookEndpointWithSecret.signing_secret": (
        "The secret to verify signatures with. Only this response and that of a rotation contain it, and no answer "
        "that is repeated for an `Idempotency-Key`."
    ),
    "WebhookEndpointTestResult.delivery_id": "The delivery of the sample in the list of deliveries.",
    "WebhookEndpointTestResult.event_type": "The event type of the sample.",
    "WebhookEndpointTestResult.status_code": "The endpoint's status, 2xx or not.",
    "WebhookEndpointTestResult.success": "The endpoint responded; `status_code` has its verdict.",
    "WebhookEndpointTestResult.webhook_endpoint_id": "The endpoint.",
    "WebhookEventTypeList.data": "Names of event types.",
}
