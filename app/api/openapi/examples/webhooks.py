"""Examples of webhooks in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from app.api.openapi.examples.all_operations import JOB_ID, OpenApi
from app.api.schemas.webhooks import CreateWebhookEndpoint, RotateSecret, TestWebhookEndpoint, UpdateWebhookEndpoint

ENDPOINT_ID = "wh_7a1b2c3d4e5f60718293a4b5"
EVENTS = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
CREATE = {"name": "pipeline", "url": "https://hooks.example.com/tunery", "event_types": EVENTS}
ENDPOINT = {
    "id": ENDPOINT_ID,
    "object": "webhook_endpoint",
    "created_at": 1795000000,
    "updated_at": 1795000000,
    **CREATE,
    "signing_secret_hint": "whsec_...Zpc=",
    "old_secret_active_until": None,
    "enabled": True,
    "disabled_at": None,
    "disabled_reason": None,
    "failing_since": None,
}
WITH_SECRET = ENDPOINT | {"signing_secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GZpc="}
DELIVERY = {
    "id": "whd_0f7d4c0e6b0a4c55b1a1f0e2d3c4b5a6",
    "object": "webhook_endpoint.delivery",
    "created_at": 1795000460,
    "webhook_endpoint_id": ENDPOINT_ID,
    "event_id": "evt_5c1e3ab2f4d04a6f9d20c1b7a8e9f001",
    "event_type": "fine_tuning.job.succeeded",
    "data": {"id": JOB_ID},
    "test": False,
    "status": "delivered",
    "attempt_count": 2,
    "next_attempt_at": None,
    "finished_at": 1795000466,
    "attempts": [
        {
            "attempt": 2,
            "finished_at": 1795000466,
            "duration_ms": 84,
            "status_code": 204,
            "error": None,
            "response": "",
        },
        {
            "attempt": 1,
            "finished_at": 1795000460,
            "duration_ms": 31,
            "status_code": 503,
            "error": None,
            "response": "starting",
        },
    ],
}
PAGE = {"object": "list", "has_more": False}

RESPONSE_EXAMPLES: dict[str, Any] = {
    "POST /v1/webhook_endpoints": WITH_SECRET,
    "GET /v1/webhook_endpoints": PAGE | {"data": [ENDPOINT], "first_id": ENDPOINT_ID, "last_id": ENDPOINT_ID},
    "GET /v1/webhook_event_types": {"object": "list", "data": EVENTS},
    "GET /v1/webhook_endpoints/{endpoint_id}": ENDPOINT,
    "POST /v1/webhook_endpoints/{endpoint_id}": ENDPOINT,
    "DELETE /v1/webhook_endpoints/{endpoint_id}": {
        "id": ENDPOINT_ID,
        "object": "webhook_endpoint.deleted",
        "deleted": True,
    },
    "POST /v1/webhook_endpoints/{endpoint_id}/rotate_secret": WITH_SECRET,
    "POST /v1/webhook_endpoints/{endpoint_id}/test": {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": ENDPOINT_ID,
        "event_type": EVENTS[0],
        "status_code": 204,
        "success": True,
        "delivery_id": DELIVERY["id"],
    },
    "GET /v1/webhook_endpoints/{endpoint_id}/deliveries": PAGE
    | {"data": [DELIVERY], "first_id": DELIVERY["id"], "last_id": DELIVERY["id"]},
    "GET /v1/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}": DELIVERY,
    "POST /v1/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/redeliver": DELIVERY,
}


def _body(model: type[BaseModel], example: dict[str, Any], required: bool = True) -> OpenApi:
    content = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, "example": example}
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


CREATE_BODY = _body(CreateWebhookEndpoint, CREATE)
UPDATE_BODY = _body(UpdateWebhookEndpoint, {"enabled": True})
ROTATE_BODY = _body(RotateSecret, {"keep_old_secret_active_for_24_hours": True}, required=False)
TEST_BODY = _body(TestWebhookEndpoint, {"event_type": EVENTS[0]})
BODY_SCHEMAS = [
    model.model_json_schema(ref_template="#/components/schemas/{model}")
    for model in (CreateWebhookEndpoint, RotateSecret, TestWebhookEndpoint, UpdateWebhookEndpoint)
]
