"""Examples of checkpoint permissions in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from app.api.openapi.examples.all_operations import OpenApi, deleted, page_of
from app.api.schemas.permissions import CreatePermissions

OTHER_PROJECT = "proj_7a1b2c3d4e5f60718293a4b5"
PERMISSION = {
    "id": "cp_8a1b2c3d4e5f60718293a4b5",
    "object": "checkpoint.permission",
    "created_at": 1795000500,
    "project_id": OTHER_PROJECT,
}
PERMISSIONS = "/v1/fine_tuning/checkpoints/{model}/permissions"
RESPONSE_EXAMPLES: dict[str, Any] = {
    f"POST {PERMISSIONS}": page_of(PERMISSION),
    f"GET {PERMISSIONS}": page_of(PERMISSION),
    f"DELETE {PERMISSIONS}/{{permission_id}}": deleted(PERMISSION),
}
CREATE_PERMISSIONS_BODY: OpenApi = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": CreatePermissions.model_json_schema(),
                "example": {"project_ids": [OTHER_PROJECT]},
            }
        },
    }
}
