"""Examples of the operations on uploads."""

from __future__ import annotations

from typing import Any

from app.api.openapi.examples.all_operations import FILE, SHA256, OpenApi
from app.api.schemas.uploads import CompleteUpload, CreateUpload

UPLOAD_ID = "upload_7a1b2c3d4e5f60718293a4b5"
PART_IDS = ["part_8a1b2c3d4e5f60718293a4b5", "part_8b1b2c3d4e5f60718293a4b6"]
CREATE_UPLOAD = {
    "filename": "train.jsonl",
    "purpose": "fine-tune",
    "bytes": 134_217_728,
    "mime_type": "application/jsonl",
}
COMPLETE_UPLOAD = {"part_ids": PART_IDS, "md5": "5d41402abc4b2a76b9719d911017c592"}
NEW_UPLOAD = CREATE_UPLOAD | {
    "id": UPLOAD_ID,
    "object": "upload",
    "created_at": 1795000000,
    "expires_at": 1795003600,
    "status": "pending",
    "file": None,
    "received_bytes": 0,
}
PART = {
    "id": PART_IDS[0],
    "object": "upload.part",
    "created_at": 1795000010,
    "upload_id": UPLOAD_ID,
    "bytes": 67_108_864,
    "sha256": SHA256,
}
COMPLETED_UPLOAD = NEW_UPLOAD | {
    "status": "completed",
    "received_bytes": 134_217_728,
    "file": FILE | {"bytes": 134_217_728, "line_count": 210_500},
}

# "METHOD path" -> example response, as in app.api.openapi.examples.all_operations.
RESPONSE_EXAMPLES: dict[str, Any] = {
    "POST /v1/uploads": NEW_UPLOAD,
    "GET /v1/uploads/{upload_id}": NEW_UPLOAD | {"received_bytes": 67_108_864},
    "POST /v1/uploads/{upload_id}/parts": PART,
    "GET /v1/uploads/{upload_id}/parts": {
        "object": "list",
        "data": [PART],
        "has_more": False,
        "first_id": PART_IDS[0],
        "last_id": PART_IDS[0],
    },
    "POST /v1/uploads/{upload_id}/complete": COMPLETED_UPLOAD,
    "POST /v1/uploads/{upload_id}/cancel": NEW_UPLOAD | {"status": "cancelled"},
    "PUT /v1/uploads/{upload_id}/content": COMPLETED_UPLOAD,
}
REQUEST_SCHEMAS = tuple(
    model.model_json_schema(ref_template="#/components/schemas/{model}") for model in (CreateUpload, CompleteUpload)
)


def _body(media_type: str, schema: dict[str, Any], example: Any) -> OpenApi:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema, "example": example}}}}


BYTES = {"type": "string", "contentMediaType": "application/octet-stream"}
PART_BYTES = BYTES | {"description": "The bytes of this part, up to 64 MiB."}
LINE = '{"prompt": "Capital of Peru?", "completion": "Lima"}'
CREATE_UPLOAD_BODY = _body("application/json", {"$ref": "#/components/schemas/CreateUpload"}, CREATE_UPLOAD)
COMPLETE_UPLOAD_BODY = _body("application/json", {"$ref": "#/components/schemas/CompleteUpload"}, COMPLETE_UPLOAD)
UPLOAD_PART_BODY = _body(
    "multipart/form-data",
    {"type": "object", "required": ["data"], "additionalProperties": False, "properties": {"data": PART_BYTES}},
    {"data": LINE},
)
UPLOAD_CONTENT_BODY = _body("application/octet-stream", BYTES, LINE) | {
    "parameters": [
        {
            "name": "Content-Range",
            "in": "header",
            "required": False,
            "schema": {"type": "string", "pattern": r"^bytes \d+-\d+/(\d+|\*)$"},
            "description": "The bytes in the body. Default: the whole content.",
            "example": "bytes 67108864-134217727/134217728",
        }
    ]
}
