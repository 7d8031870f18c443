"""Examples of extensions of OpenAI's API: exports, clones, diffs, reports on files, origins of files."""

from __future__ import annotations

from typing import Any

from app.api.openapi.examples import all_operations
from app.api.openapi.examples.all_operations import OpenApi
from app.api.schemas.files import UpdateFile
from app.api.schemas.jobs.requests import UpdateJob
from app.domain.jobs.create_job import CreateJob

REF = "#/components/schemas/{model}"

ORIGIN = {
    "service": "openai",
    "id": "file-XjGxS3KTG0uNmNOK362iJua3",
    "filename": "train.jsonl",
    "created_at": 1740000000,
    "imported_at": 1795000000,
}
EXPORT = {
    "id": "ftexport-7a1b2c3d4e5f60718293a4b5",
    "object": "fine_tuning.job.export",
    "created_at": 1795000500,
    "started_at": 1795000501,
    "finished_at": 1795000512,
    "fine_tuning_job_id": all_operations.JOB_ID,
    "type": "merged",
    "quantization": None,
    "format": "safetensors",
    "status": "succeeded",
    "model": all_operations.TUNED,
    "checkpoint": all_operations.CHECKPOINT["id"],
    "step_number": 90,
    "base_model": all_operations.MODEL,
    "attempts": 1,
    "phase": None,
    "expected_bytes": 272_500_000,
    "bytes": 272_502_113,
    "files": [
        {
            "id": "file-e1b2c3d4e5f60718293a4b54",
            "filename": "config.json",
            "bytes": 861,
            "sha256": all_operations.SHA256,
        },
        {
            "id": "file-e2b2c3d4e5f60718293a4b55",
            "filename": "model.safetensors",
            "bytes": 269_060_552,
            "sha256": all_operations.SHA256,
        },
    ],
    "error": None,
}
QUEUED_EXPORT = EXPORT | {
    "started_at": None,
    "finished_at": None,
    "status": "queued",
    "attempts": 0,
    "bytes": None,
    "files": [],
}
CLONE_ID = "ftjob-5a7f2d1c0e3b8f9d4c6b7e2a"
CLONE = all_operations.NEW_JOB | {
    "id": CLONE_ID,
    "lora": all_operations.LORA | {"r": 32},
    "cloned_from": all_operations.JOB_ID,
    "request": {"lora": {"r": 32}},
}
CHANGED_JOB = all_operations.QUEUED_JOB | {"priority": 10, "metadata": {"team": "search", "for": "release 3"}}
DIFF = {
    "object": "fine_tuning.job.diff",
    "left": {
        "id": all_operations.JOB_ID,
        "status": "succeeded",
        "fine_tuned_model": all_operations.TUNED,
        "training_file": all_operations.FILE_ID,
        "validation_file": None,
        "cloned_from": None,
    },
    "right": {
        "id": CLONE_ID,
        "status": "succeeded",
        "fine_tuned_model": "ft:SmolLM2-135M-Instruct:tunery:demo:2a9b31d5",
        "training_file": all_operations.FILE_ID,
        "validation_file": None,
        "cloned_from": all_operations.JOB_ID,
    },
    "data": {
        "differences": 0,
        "values": [
            {
                "path": "training_file.sha256",
                "left": all_operations.SHA256,
                "right": all_operations.SHA256,
                "differs": False,
            }
        ],
    },
    "config": {"differences": 1, "values": [{"path": "lora.r", "left": 16, "right": 32, "differs": True}]},
    "environment": {
        "differences": 0,
        "values": [{"path": "versions.torch", "left": "2.13.0", "right": "2.13.0", "differs": False}],
    },
    "result": {
        "differences": 1,
        "values": [{"path": "train_loss", "left": 0.61, "right": 0.58, "differs": True}],
    },
}
REPORT = {
    "object": "file.report",
    "file": all_operations.FILE_ID,
    "filename": "train.jsonl",
    "bytes": 48213,
    "sha256": all_operations.SHA256,
    "model": all_operations.MODEL,
    "method": "supervised",
    "context_length": 2048,
    "valid": False,
    "message": "1 line has an unsupported format for a supervised job.",
    "format": "chat",
    "formats": {"chat": 119},
    "findings": {
        "count": 1,
        "lines": 1,
        "data": [{"line": 17, "code": "invalid_role", "message": "message 1 has no role; allowed are ..."}],
    },
    "warnings": [
        {
            "code": "duplicate_rows",
            "message": "Rows that repeat an earlier row: 1 (line 93). They have more weight in training; remove "
            "unintended duplicates.",
            "file": all_operations.FILE_ID,
            "count": 1,
            "first_lines": [93],
        },
        {
            "code": "overlap",
            "message": "Rows of the validation file that are also in the training file: 1 (line 3) of 30 different "
            "rows. The validation loss of memorized rows is too low; use a file of other rows.",
            "file": "file-2a1b2c3d4e5f60718293a4b5",
            "count": 1,
            "first_lines": [3],
        },
    ],
    "coverage": {
        "complete": True,
        "lines_read": 120,
        "rows": 119,
        "tokenized_rows": 119,
        "tokenized_every": 1,
        "rows_compared": 119,
        "validation_file_complete": True,
    },
    "tokens": {
        "total": 17280,
        "trained": 4320,
        "lengths": {"min": 52, "median": 140, "mean": 145.2, "p90": 210, "p99": 402, "max": 512},
        "histogram": [{"least": 33, "most": 64, "rows": 9}, {"least": 65, "most": 128, "rows": 110}],
    },
    "cut": {"count": 0, "first_lines": []},
    "empty": {"count": 2, "first_lines": [4, 60]},
    "masked": {"count": 2, "first_lines": [4, 60]},
    "duplicates": {"rows": 1, "groups": [{"lines": [8, 93]}]},
    "overlap": {
        "validation_file": "file-2a1b2c3d4e5f60718293a4b5",
        "rows": 1,
        "data": [{"line": 12, "validation_line": 3}],
    },
    "rows": [
        {
            "line": 1,
            "format": "chat",
            "trained": True,
            "tokens": 9,
            "cut_tokens": 0,
            "documents": [
                {
                    "side": None,
                    "tokens": 9,
                    "trained_tokens": 2,
                    "omitted_tokens": 0,
                    "segments": [
                        {
                            "text": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
                            "trained": False,
                            "token_ids": [1, 4093, 198, 5306, 2, 198, 1],
                        },
                        {"text": "hello<|im_end|>", "trained": True, "token_ids": [28120, 2]},
                    ],
                    "truncated_tokens": 0,
                    "truncated_segments": [],
                }
            ],
        }
    ],
}

RESPONSE_EXAMPLES: dict[str, Any] = {
    "POST /v1/fine_tuning/jobs/{job_id}": CHANGED_JOB,
    "POST /v1/files/{file_id}": all_operations.FILE | {"origin": ORIGIN},
    "POST /v1/fine_tuning/jobs/{job_id}/exports": QUEUED_EXPORT,
    "GET /v1/fine_tuning/jobs/{job_id}/exports": all_operations.page_of(EXPORT),
    "GET /v1/fine_tuning/jobs/{job_id}/exports/{export_id}": EXPORT,
    "DELETE /v1/fine_tuning/jobs/{job_id}/exports/{export_id}": all_operations.deleted(EXPORT),
    "POST /v1/fine_tuning/jobs/{job_id}/clone": CLONE,
    "GET /v1/fine_tuning/jobs/{job_id}/diff": DIFF,
    "POST /v1/files/{file_id}/validate": REPORT,
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
                        "type": {
                            "enum": ["merged", "gguf", "gguf_adapter"],
                            "description": "A merged model directory, the same as a GGUF file, or the adapter as one.",
                        },
                        "quantization": {
                            "enum": ["F16", "Q8_0", "Q4_K_M", None],
                            "description": "The weights of a `gguf` export. Default: `Q8_0`.",
                        },
                        "checkpoint": {
                            "type": ["string", "null"],
                            "description": "Id or model name of a kept checkpoint. Default: the job's result.",
                        },
                    },
                },
                "example": {"type": "merged"},
            }
        },
    }
}


def _clone_of(create: dict[str, Any]) -> dict[str, Any]:
    """The schema of a create body with all keys optional."""
    properties = {
        name: {key: value for key, value in inner.items() if key != "default"}
        | {"description": f"As in a create body; replaces {name} of the original."}
        for name, inner in create["properties"].items()
    }
    kept = {key: value for key, value in create.items() if key != "required"}
    return kept | {
        "title": "CloneJob",
        "description": "Overrides of the original's values.",
        "properties": properties,
    }


def _body(schema: dict[str, Any], example: dict[str, Any], required: bool = True) -> OpenApi:
    content = {"schema": {"$ref": f"#/components/schemas/{schema['title']}"}, "example": example}
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


CLONE_JOB = _clone_of(CreateJob.model_json_schema(ref_template=REF))
UPDATE_JOB = UpdateJob.model_json_schema(ref_template=REF)
UPDATE_FILE = UpdateFile.model_json_schema(ref_template=REF)
BODY_SCHEMAS = [CLONE_JOB, UPDATE_JOB, UPDATE_FILE]
UPDATE_FILE_BODY = _body(UPDATE_FILE, {"origin": ORIGIN})
CLONE_BODY = _body(CLONE_JOB, {"lora": {"r": 32}}, required=False)
UPDATE_JOB_BODY = _body(UPDATE_JOB, {"priority": 10, "metadata": {"team": "search", "for": "release 3"}})
