"""Examples of what is ours beside OpenAI's calls: exports, clones, differences, reports on files."""

from __future__ import annotations

from typing import Any

from app.api import examples
from app.api.examples import OpenApi

EXPORT = {
    "id": "ftexport-7a1b2c3d4e5f60718293a4b5", "object": "fine_tuning.job.export", "created_at": 1795000500,
    "started_at": 1795000501, "finished_at": 1795000512, "fine_tuning_job_id": examples.JOB_ID, "type": "merged",
    "format": "safetensors", "status": "succeeded", "model": examples.TUNED, "checkpoint": examples.CHECKPOINT["id"], "step_number": 90,
    "base_model": examples.MODEL, "attempts": 1, "expected_bytes": 272_500_000, "bytes": 272_502_113,
    "files": [
        {"id": "file-e1b2c3d4e5f60718293a4b54", "filename": "config.json", "bytes": 861, "sha256": examples.SHA256},
        {"id": "file-e2b2c3d4e5f60718293a4b55", "filename": "model.safetensors", "bytes": 269_060_552,
         "sha256": examples.SHA256},
    ],
    "error": None,
}  # fmt: skip
QUEUED_EXPORT = EXPORT | {
    "started_at": None, "finished_at": None, "status": "queued", "attempts": 0, "bytes": None, "files": [],
}  # fmt: skip

ANSWERS: dict[str, Any] = {
    "POST /v1/fine_tuning/jobs/{job_id}/exports": QUEUED_EXPORT,
    "GET /v1/fine_tuning/jobs/{job_id}/exports": examples.page_of(EXPORT),
    "GET /v1/fine_tuning/jobs/{job_id}/exports/{export_id}": EXPORT,
    "DELETE /v1/fine_tuning/jobs/{job_id}/exports/{export_id}": examples.deleted(EXPORT),
}
CREATE_EXPORT_BODY: OpenApi = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["type"],
                    "additionalProperties": False,
                    "properties": {
                        "type": {"enum": ["merged"], "description": "What to make: an ordinary model directory."},
                        "checkpoint": {
                            "type": ["string", "null"],
                            "description": "A kept checkpoint's id or model name; absent: the job's result.",
                        },
                    },
                },
                "example": {"type": "merged"},
            }
        },
    }
}
