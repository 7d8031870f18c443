"""Response bodies of exports."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.common import Body, ListBody, unix_seconds, unix_seconds_or_none
from app.api.schemas.jobs.checkpoints import AdapterFile
from app.domain.artifacts.exports import ExportState
from app.domain.artifacts.full_disk import WAITING_FOR_STORAGE
from app.services.jobs.exports import ExportView


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
    type: Literal["merged"]
    format: Literal["safetensors"]
    status: Literal["queued", "running", "succeeded", "failed"]
    phase: Literal["waiting_for_storage"] | None
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
    is_waiting = export.state == ExportState.QUEUED and export.storage_full_since is not None
    return {
        "id": export.id,
        "object": "fine_tuning.job.export",
        "created_at": unix_seconds(export.created_at),
        "started_at": unix_seconds_or_none(export.started_at),
        "finished_at": unix_seconds_or_none(export.finished_at),
        "fine_tuning_job_id": export.job_id,
        "type": export.type,
        "format": "safetensors",
        "status": export.state,
        "phase": WAITING_FOR_STORAGE if is_waiting else None,
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
