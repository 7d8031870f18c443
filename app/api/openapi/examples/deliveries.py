"""Examples of delivery targets and deliveries in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from app.api.openapi.examples.all_operations import JOB_ID, TUNED, OpenApi
from app.api.schemas.deliveries import CreateDelivery, CreateDeliveryTarget, UpdateDeliveryTarget

TARGET_ID = "target_7a1b2c3d4e5f60718293a4b5"
TARGET_NAME = "production"
DELIVERY_ID = "delivery_0f7d4c0e6b0a4c55b1a1f0e2"
DESTINATION = {
    "kind": "vllm",
    "urls": ["https://vllm.example.com"],
    "shared_path": "/srv/adapters",
    "engine_path": "/adapters",
    "base_model": None,
    "base_name": None,
}
CREATE_TARGET = {
    "name": TARGET_NAME,
    "destination": {
        "kind": "vllm",
        "urls": ["https://vllm.example.com"],
        "shared_path": "/srv/adapters",
        "engine_path": "/adapters",
    },
    "credentials": {"api_key": "vllm-key"},
    "served_model": "support-bot",
}
TARGET = {
    "id": TARGET_ID,
    "object": "delivery_target",
    "created_at": 1795000000,
    "updated_at": 1795000000,
    "name": TARGET_NAME,
    "kind": "vllm",
    "destination": DESTINATION,
    "credentials": ["api_key"],
    "served_model": "support-bot",
    "default": False,
    "status": "ready",
    "error": None,
}
CHECK = {
    "verdict": "same",
    "prompts": 16,
    "tokens": 645,
    "noise": 0.0015,
    "trainer_effect": 1.862,
    "engine_effect": 1.861,
    "difference": 0.0017,
    "largest_difference": 0.086,
    "top1_agreement": 1.0,
    "method": "prompt",
    "reason": None,
}
OF_JOB = {
    "id": DELIVERY_ID,
    "target": TARGET_NAME,
    "status": "delivered",
    "model": TUNED,
    "served_model": "support-bot",
    "check": CHECK,
    "error": None,
}
DELIVERY = OF_JOB | {
    "object": "fine_tuning.job.delivery",
    "created_at": 1795000460,
    "updated_at": 1795000475,
    "fine_tuning_job_id": JOB_ID,
    "checkpoint": "ftckpt_6a1b2c3d4e5f60718293a4b5",
    "attempts": 1,
    "next_attempt_at": 1795000535,
    "delivered_at": 1795000475,
    "location": {
        "path": "/adapters/.tunery/support-bot/0f7d4c0e6b0a4c55",
        "root": "/adapters",
        "version": "0f7d4c0e6b0a4c55",
        "served_model": "support-bot",
    },
}
PAGE = {"object": "list", "has_more": False}
DELIVERIES = "/v1/fine_tuning/jobs/{job_id}/deliveries"

RESPONSE_EXAMPLES: dict[str, Any] = {
    "POST /v1/delivery_targets": TARGET,
    "GET /v1/delivery_targets": PAGE | {"data": [TARGET], "first_id": TARGET_ID, "last_id": TARGET_ID},
    "GET /v1/delivery_targets/{target_id}": TARGET,
    "POST /v1/delivery_targets/{target_id}": TARGET | {"default": True},
    "DELETE /v1/delivery_targets/{target_id}": {
        "id": TARGET_ID,
        "object": "delivery_target.deleted",
        "deleted": True,
    },
    f"POST {DELIVERIES}": DELIVERY
    | {"status": "pending", "check": None, "attempts": 0, "delivered_at": None, "location": None},
    f"GET {DELIVERIES}": PAGE | {"data": [DELIVERY], "first_id": DELIVERY_ID, "last_id": DELIVERY_ID},
    f"GET {DELIVERIES}/{{delivery_id}}": DELIVERY,
    f"DELETE {DELIVERIES}/{{delivery_id}}": DELIVERY | {"status": "withdrawing"},
}


def _body(model: type[BaseModel], example: dict[str, Any]) -> OpenApi:
    content = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


CREATE_TARGET_BODY = _body(CreateDeliveryTarget, CREATE_TARGET)
UPDATE_TARGET_BODY = _body(UpdateDeliveryTarget, {"default": True})
CREATE_DELIVERY_BODY = _body(CreateDelivery, {"target": TARGET_NAME})
BODY_SCHEMAS = [
    model.model_json_schema(ref_template="#/components/schemas/{model}")
    for model in (CreateDelivery, CreateDeliveryTarget, UpdateDeliveryTarget)
]
