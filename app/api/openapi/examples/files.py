"""The multipart body of an uploaded file."""

from __future__ import annotations

from app.api.openapi.examples.all_operations import OpenApi

UPLOAD_BODY: OpenApi = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "properties": {
                        "purpose": {
                            "enum": ["fine-tune", "assistants", "batch", "vision", "user_data", "evals"],
                            "description": "Jobs take files with purpose fine-tune.",
                        },
                        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
                        "expires_after[anchor]": {"const": "created_at"},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                },
                "example": {
                    "purpose": "fine-tune",
                    "file": '{"prompt": "Capital of Peru?", "completion": "Lima"}',
                },
            }
        },
    }
}
