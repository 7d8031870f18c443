"""Response bodies of exports."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.common import Body, ListBody, unix_seconds, unix_seconds_or_none
from app.api.schemas.jobs.checkpoints import AdapterFile
from app.domain.artifacts.exports import WAITING_FOR_WORKER, ExportState, ExportType
from app.domain.artifacts.full_disk import WAITING_FOR_STORAGE
from app.services.jobs.exports import ExportView


class ExportErrorBody(Body):
    code: str
    """The error code for programs, such as `adapter_deleted`, `storage_full` or `worker_lost`."""
    message: str
    """The error in a sentence."""


class ExportBody(Body):
    """`model` is the name of the exported model: the job's result, or one of its checkpoints."""

    id: str
    object: Literal["fine_tuning.job.export"]
    created_at: int
    started_at: int | None
    """When a worker first started it, in seconds since 1970; null until then."""
    finished_at: int | None
    """Seconds since 1970; null until it has succeeded or failed."""
    fine_tuning_job_id: str
    type: Literal["merged", "gguf", "gguf_adapter"]
    """`merged`: the base model with the adapter added to its weights. `gguf`: the same as one GGUF file.
    `gguf_adapter`: the adapter alone as a GGUF file.
    """
    quantization: Literal["F16", "Q8_0", "Q4_K_M"] | None
    """The weights of a `gguf` export, in llama.cpp's names; null for other types."""
    format: Literal["safetensors", "gguf"]
    """`safetensors`: a directory that `from_pretrained` loads. `gguf`: one file for llama.cpp and Ollama."""
    status: Literal["queued", "running", "succeeded", "failed"]
    """`queued` until a worker takes it, `running` while a worker makes it."""
    phase: Literal["waiting_for_storage", "waiting_for_worker"] | None
    """`waiting_for_storage` while it is queued after an attempt that found a full disk, which is retried.
    `waiting_for_worker` while no running worker makes exports of its type.
    """
    model: str
    """The `ft:` name of the exported model."""
    checkpoint: str
    """The id of the exported checkpoint; the result is a checkpoint, too."""
    step_number: int
    """Optimizer steps that the adapter was trained for."""
    base_model: str
    """The base model of the adapter."""
    attempts: int
    """How often a worker has started the export."""
    expected_bytes: int
    """The estimated size, which counts as stored bytes of the project; of a merged model the size of the base model."""
    bytes: int | None
    """The size of all its files; null until it has succeeded."""
    files: list[AdapterFile]
    """All files, to download from `/v1/files/{file_id}/content`. Empty until it has succeeded."""
    error: ExportErrorBody | None
    """Why the export failed; null in every other state."""


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
