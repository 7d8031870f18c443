"""Examples of files, jobs and models in the OpenAPI document; tests validate each against its schema."""

from __future__ import annotations

from typing import Any

from app.api.schemas.jobs.requests import CreateJob
from app.domain.artifacts.compatibility import job_compatibility

OpenApi = dict[str, Any]
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
MODEL = "SmolLM2-135M-Instruct"
TUNED = f"ft:{MODEL}:tunery:demo:1f8a20c4"
JOB_ID = "ftjob-4f6e1c0b9d2a7e8c3b5a6d1f"
FILE_ID = "file-0a1b2c3d4e5f60718293a4b5"
ADAPTER_FILES = ["file-b1b2c3d4e5f60718293a4b50", "file-b2b2c3d4e5f60718293a4b51"]
ARCHIVE_ID = "file-c1b2c3d4e5f60718293a4b52"
RESULTS_ID = "file-d1b2c3d4e5f60718293a4b53"

FILE = {
    "id": FILE_ID,
    "object": "file",
    "bytes": 48213,
    "created_at": 1795000000,
    "filename": "train.jsonl",
    "purpose": "fine-tune",
    "status": "processed",
    "status_details": None,
    "expires_at": None,
    "sha256": SHA256,
    "line_count": 120,
    "origin": None,
}
HYPERPARAMETERS = {
    "n_epochs": 3,
    "batch_size": 4,
    "learning_rate": 0.0013,
    "learning_rate_multiplier": 1.0,
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "linear",
    "context_length": 2048,
    "packing": True,
    "max_steps": None,
    "eval_steps": None,
    "early_stopping": None,
    "promote_best": False,
}
LORA = {
    "r": 16,
    "alpha": 32.0,
    "dropout": 0.0,
    "target_modules": ["q_proj", "v_proj"],
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "init": "default",
}
QUANTIZATION = {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
CREATE_JOB = {
    "model": MODEL,
    "training_file": FILE_ID,
    "suffix": "demo",
    "seed": 7,
    "metadata": {"team": "search"},
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}},
    "lora": {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
    "quantization": QUANTIZATION,
}
NEW_JOB = {
    "id": JOB_ID,
    "object": "fine_tuning.job",
    "created_at": 1795000100,
    "started_at": None,
    "finished_at": None,
    "training_seconds": 0.0,
    "attempt_started_at": None,
    "estimated_finish": None,
    "model": MODEL,
    "model_alias": None,
    "fine_tuned_model": None,
    "organization_id": "tunery",
    "status": "validating_files",
    "hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0},
    "method": {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},
    "training_file": FILE_ID,
    "validation_file": None,
    "file_origins": None,
    "result_files": [],
    "trained_tokens": None,
    "seed": 7,
    "error": None,
    "integrations": [],
    "metadata": {"team": "search"},
    "user_provided_suffix": "demo",
    "lora": LORA,
    "quantization": QUANTIZATION,
    "sample_prompts": [],
    "progress": None,
    "trained_steps": None,
    "total_steps": None,
    "phase": None,
    "pause_requested": False,
    "queue_position": None,
    "expected_start": None,
    "waiting_for": None,
    "priority": 0,
    "urgent": False,
    "worker_labels": [],
    "attempts": 0,
    "cloned_from": None,
    "warnings": [],
    "evaluation": None,
    "adapter": None,
    "compatibility": job_compatibility({"lora": LORA}, JOB_ID),
} | {"deliver_to": [], "deliveries": [], "request": CREATE_JOB}
FINISHED_JOB = NEW_JOB | {
    "started_at": 1795000340,
    "finished_at": 1795000460,
    "training_seconds": 120.0,
    "status": "succeeded",
    "fine_tuned_model": TUNED,
    "trained_tokens": 51840,
    "result_files": [RESULTS_ID],
    "trained_steps": 90,
    "total_steps": 90,
    "attempts": 1,
    "progress": {"step": 90, "total_steps": 90, "epoch": 3.0, "tokens_per_second": 412.5, "eta_seconds": 0.0},
    "adapter": {
        "files": ADAPTER_FILES,
        "archive_file_id": ARCHIVE_ID,
        "format": "peft",
        "sha256": SHA256,
        "bytes": 9_778_176,
        "base_model": MODEL,
    },
}
CANCELLED_JOB = NEW_JOB | {"status": "cancelled", "finished_at": 1795000200}
PAUSED_JOB = NEW_JOB | {"status": "paused"}
QUEUED_JOB = NEW_JOB | {"status": "queued", "queue_position": 1, "expected_start": 1795000340}
PLAN = {
    "object": "fine_tuning.plan",
    "model": MODEL,
    "model_alias": None,
    "training_file": FILE_ID,
    "verdict": "fits",
    "message": "Fits NVIDIA L4: 1.93 GB of 24.15 GB, with packed batches of 8,192 tokens, no recomputation.",
    "method": "supervised",
    "hyperparameters": HYPERPARAMETERS
    | {
        "eval_steps": None,
        "early_stopping": None,
        "beta": None,
    },
    "lora": LORA | {"rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": []},
    "quantization": QUANTIZATION,
    "seed": 7,
    "examples": 120,
    "trained_examples": 118,
    "tokens_per_epoch": 17280,
    "labelled_tokens_per_epoch": 4320,
    "longest_document_tokens": 512,
    "total_steps": 90,
    "trained_tokens": 51840,
    "cut": {"count": 1, "first_lines": [17]},
    "masked": {"count": 2, "first_lines": [4, 60]},
    "empty": {"count": 2, "first_lines": [4, 60]},
    "warnings": [],
    "devices": [
        {
            "kind": "cuda",
            "name": "NVIDIA L4",
            "memory_bytes": 24_152_899_584,
            "workers": 2,
            "fits": True,
            "message": "Fits NVIDIA L4: 1.93 GB of 24.15 GB, with packed batches of 8,192 tokens, no recomputation.",
            "mode": {"row_tokens": 8192, "recompute": "nothing", "recompute_layers": 0, "cache_weights": False},
            "memory": {
                "process": 500_000_000,
                "base": 111_000_000,
                "adapter": 78_151_680,
                "cache": 0,
                "activations": 1_140_000_000,
                "live_layer": 9_000_000,
                "loss": 72_000_000,
                "verify": 170_000_000,
                "kernels": 0,
                "peak": 1_901_151_680,
            },
            "seconds": 41.0,
            "basis": "measured",
        }
    ],
}
EVENT = {
    "id": "ftevent-5a1b2c3d4e5f60718293a4b5",
    "object": "fine_tuning.job.event",
    "created_at": 1795000300,
    "level": "info",
    "message": "Step 30/90: training loss=1.42",
    "type": "metrics",
    "data": {"step": 30, "total_steps": 90, "train_loss": 1.42, "train_mean_token_accuracy": 0.66},
}
CHECKPOINT = {
    "id": "ftckpt_6a1b2c3d4e5f60718293a4b5",
    "object": "fine_tuning.job.checkpoint",
    "created_at": 1795000440,
    "fine_tuning_job_id": JOB_ID,
    "fine_tuned_model_checkpoint": TUNED,
    "step_number": 90,
    "best": False,
    "metrics": {"step": 90, "train_loss": 0.61, "train_mean_token_accuracy": 0.85},
    "result_files": ADAPTER_FILES,
    "adapter_archive_file_id": ARCHIVE_ID,
}
STEP_METRICS = {
    "object": "fine_tuning.job.metrics",
    "fine_tuning_job_id": JOB_ID,
    "total": 90,
    "data": [
        {"step": 1, "total_steps": 90, "train_loss": 2.31, "train_mean_token_accuracy": 0.48, "learning_rate": 0.0001},
        {"step": 90, "total_steps": 90, "train_loss": 0.61, "train_mean_token_accuracy": 0.85, "learning_rate": 0.0},
    ],
}
LOSS_CURVES = {
    "object": "list",
    "data": [
        {
            "object": "fine_tuning.job.loss_curve",
            "fine_tuning_job_id": JOB_ID,
            "steps": [1, 45, 90],
            "train_losses": [2.31, 0.97, 0.61],
            "best_valid_loss": 0.72,
        }
    ],
}
ATTEMPTS = {
    "object": "list",
    "data": [
        {
            "object": "fine_tuning.job.attempt",
            "attempt": 2,
            "kind": "train",
            "worker_id": "worker_4f2a9c1d7e3b5a60",
            "gpus": 1,
            "gpu_share": 1.0,
            "memory_budget_bytes": None,
            "started_at": 1795000340,
            "ended_at": 1795000460,
            "reason": "done",
        }
    ],
}
ADAPTER = {
    "object": "fine_tuning.job.adapter",
    "fine_tuning_job_id": JOB_ID,
    "fine_tuned_model": TUNED,
    "base_model": MODEL,
    "format": "peft",
    "step_number": 90,
    "files": [
        {"id": ADAPTER_FILES[0], "filename": "adapter_config.json", "bytes": 921, "sha256": SHA256},
        {"id": ADAPTER_FILES[1], "filename": "adapter_model.safetensors", "bytes": 9_770_000, "sha256": SHA256},
    ],
    "archive": {"id": ARCHIVE_ID, "filename": "adapter.tar", "bytes": 9_778_176, "sha256": SHA256},
}
BASE_MODEL = {
    "id": MODEL,
    "object": "model",
    "created": 1794990000,
    "owned_by": "tunery",
    "fine_tunable": True,
    "max_context_length": 2048,
    "lora_limits": {"max_r": 192, "target_modules": ["down_proj", "k_proj", "q_proj", "v_proj"]},
}
TUNED_MODEL = {
    "id": TUNED,
    "object": "model",
    "created": 1795000460,
    "owned_by": "tunery",
    "fine_tunable": True,
    "base_model": MODEL,
    "fine_tuning_job_id": JOB_ID,
}
READY = {
    "status": "ready",
    "checks": {
        "database": {"ok": True, "required": True, "detail": "reachable"},
        "migrations": {"ok": True, "required": True, "detail": "at the newest revision"},
        "base_model": {"ok": True, "required": True, "detail": "registered"},
        "storage": {"ok": True, "required": True, "detail": "writable"},
        "broker": {"ok": True, "required": False, "detail": "reachable"},
    },
}


def page_of(*items: dict[str, Any]) -> dict[str, Any]:
    ids = {"first_id": items[0]["id"], "last_id": items[-1]["id"]}
    return {"object": "list", "data": list(items), "has_more": False, **ids}


def deleted(item: dict[str, Any]) -> dict[str, Any]:
    return {"id": item["id"], "object": item["object"], "deleted": True}


# "METHOD path" -> example response; app.api.openapi.document adds them to the document.
RESPONSE_EXAMPLES: dict[str, Any] = {
    "POST /v1/files": FILE,
    "GET /v1/files": page_of(FILE),
    "GET /v1/files/{file_id}": FILE,
    "DELETE /v1/files/{file_id}": deleted(FILE),
    "POST /v1/fine_tuning/jobs": NEW_JOB,
    "POST /v1/fine_tuning/jobs/plan": PLAN,
    "GET /v1/fine_tuning/jobs": page_of(FINISHED_JOB),
    "GET /v1/fine_tuning/jobs/{job_id}": FINISHED_JOB,
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": CANCELLED_JOB,
    "POST /v1/fine_tuning/jobs/{job_id}/pause": PAUSED_JOB,
    "POST /v1/fine_tuning/jobs/{job_id}/resume": QUEUED_JOB,
    "GET /v1/fine_tuning/jobs/{job_id}/events": page_of(EVENT),
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": page_of(CHECKPOINT),
    "GET /v1/fine_tuning/jobs/{job_id}/metrics": STEP_METRICS,
    "GET /v1/fine_tuning/loss_curves": LOSS_CURVES,
    "GET /v1/fine_tuning/jobs/{job_id}/attempts": ATTEMPTS,
    "GET /v1/fine_tuning/jobs/{job_id}/adapter": ADAPTER,
    "GET /v1/models": {"object": "list", "data": [BASE_MODEL, TUNED_MODEL]},
    "GET /v1/models/{model}": BASE_MODEL,
    "DELETE /v1/models/{model}": deleted(TUNED_MODEL),
    "GET /healthz": {"status": "ok"},
    "GET /readyz": READY,
}
ERROR = {
    "error": {
        "message": "No such File object: file-123",
        "type": "invalid_request_error",
        "param": "id",
        "code": "not_found",
    }
}


def _json_body(schema: dict[str, Any], example: dict[str, Any]) -> OpenApi:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


CREATE_JOB_BODY = _json_body({"$ref": "#/components/schemas/CreateJob"}, CREATE_JOB)
CREATE_JOB_SCHEMA = CreateJob.model_json_schema(ref_template="#/components/schemas/{model}")
METADATA_FILTER: OpenApi = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "style": "deepObject",
            "explode": True,
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "description": "metadata[key]=value for each pair, or metadata=null.",
            "example": {"team": "search"},
        }
    ]
}


def _bytes(description: str, media_type: str, example: str) -> dict[str, Any]:
    """A response with bytes. For `*/*`, any type, there is no schema."""
    schema = {} if media_type == "*/*" else {"schema": {"type": "string", "contentMediaType": media_type}}
    content = {media_type: schema | {"example": example}}
    return {"description": description, "content": content}


REDIRECT = {"description": "The content is at the address in Location: files are in a bucket, and redirects are set."}
CONTENT: dict[int | str, dict[str, Any]] = {
    200: _bytes("The whole file; its media type is derived from its name.", "*/*", '{"messages": []}'),
    206: _bytes("The requested range.", "*/*", '{"mess'),
    304: {"description": "The client has the current content (If-None-Match)."},
    307: REDIRECT,
}
ARCHIVE: dict[int | str, dict[str, Any]] = {
    200: _bytes("The whole archive.", "application/x-tar", "adapter/adapter_config.json ..."),
    206: _bytes("The requested range.", "application/x-tar", "adapter/adap"),
    304: {"description": "The client has the current content (If-None-Match)."},
    307: REDIRECT,
}
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Unchanged since the ETag in If-None-Match."}}
METRICS: dict[int | str, dict[str, Any]] = NOT_MODIFIED | {
    200: _bytes(
        "A row per step; with format=csv the columns of the job's results file.",
        "text/csv",
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,2.31,0.48,,\n",
    )
}
LOG: dict[int | str, dict[str, Any]] = NOT_MODIFIED | {
    200: _bytes("The end of the log.", "text/plain", "Loading weights: 100%\n")
}
