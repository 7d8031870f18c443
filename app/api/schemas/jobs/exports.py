"""Response bodies of exports."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.common import Body, ListBody, unix_seconds, unix_seconds_or_none
from app.api.schemas.jobs.checkpoints import AdapterFile
from app.domain.artifacts.exports import WAITING_FOR_WORKER, ExportState, ExportType
from app.domain.artifacts.full_disk import WAITING_FOR_STORAGE
from app.services.jobs.exports import ExportView


class CreateExport(Body):
    """What is exported."""  # documents the body, which app.services.jobs.exports parses

    type: Literal["merged", "gguf", "gguf_adapter"]
    """A merged model directory, the same as a GGUF file, or the adapter as one."""
    quantization: Literal["F16", "Q8_0", "Q4_K_M"] | None = None
    """The weights of a `gguf` export. Default: `Q8_0`."""
    checkpoint: str | None = None
    """Id or model name of a kept checkpoint. Default: the job's result."""


class ExportErrorBody(Body):
    code: str
    message: str


class ExportBody(Body):
    """`model` is the name of the exported model: the job's result, or one of its checkpoints."""

    id: str
    object: Literal["fine_tuning.job.export"]
    created_at: int
    started_at: int | None
    finished_at: int | None
    fine_tuning_job_id: str
    type: Literal["merged", "gguf", "gguf_adapter"]
    quantization: Literal["F16", "Q8_0", "Q4_K_M"] | None
    format: Literal["safetensors", "gguf"]
    status: Literal["queued", "running", "succeeded", "failed"]
    phase: Literal["waiting_for_storage", "waiting_for_worker"] | None
    model: str
    checkpoint: str
    step_number: int
    base_model: str
    attempts: int
    expected_bytes: int
    bytes: int | None
    files: list[AdapterFile]
    error: ExportErrorBody | None


class ExportList(ListBody):
    data: list[ExportBody]


def render_export(view: ExportView) -> dict[str, Any]:
    export = view.export
    return {
        "id": export.id,
        "object": "fine_tuning.job.export",
        "created_at": unix_seconds(export.created_at),
        "started_at": unix_seconds_or_none(export.started_at),
        "finished_at": unix_seconds_or_none(export.finished_at),
        "fine_tuning_job_id": export.job_id,
        "type": export.type,
        "quantization": export.quantization,
        "format": "safetensors" if export.type == ExportType.MERGED else "gguf",
        "status": export.state,
        "phase": _phase(view),
        "model": export.model,
        "checkpoint": export.checkpoint_id,
        "step_number": export.step_number,
        "base_model": export.base_model,
        "attempts": export.attempt,
        "expected_bytes": export.expected_bytes,
        "bytes": export.size_bytes,
        "files": [
            {"id": file.id, "filename": file.filename, "bytes": file.bytes, "sha256": file.sha256}
            for file in view.files
        ],
        "error": {"code": export.error_code, "message": export.error_message or ""} if export.error_code else None,
    }


def _phase(view: ExportView) -> str | None:
    if view.export.state != ExportState.QUEUED:
        return None
    if view.export.storage_full_since is not None:
        return WAITING_FOR_STORAGE
    return None if view.has_worker else WAITING_FOR_WORKER
