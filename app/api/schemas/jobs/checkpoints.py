"""Response bodies of checkpoints, and of the adapter of a finished job."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.common import Body, ListBody, unix_seconds
from app.db.tables import Checkpoint, File
from app.services.jobs.adapters import Adapter


class CheckpointBody(Body):
    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    """The `ft:` name; for the result it is the name of the job's model."""
    step_number: int
    best: bool
    """Whether it has the lowest full validation loss of the job."""
    metrics: dict[str, float | None]
    """Losses and accuracies at this step; values that were not measured are absent."""
    result_files: list[str]
    """Ids of the files of the adapter."""
    adapter_archive_file_id: str
    """The files of the adapter as one tar."""


class CheckpointList(ListBody):
    data: list[CheckpointBody]


class AdapterFile(Body):
    id: str
    filename: str
    bytes: int
    sha256: str


class AdapterBody(Body):
    """Each file, and `archive`, a tar of all files."""

    object: Literal["fine_tuning.job.adapter"]
    fine_tuning_job_id: str
    fine_tuned_model: str
    base_model: str
    format: Literal["peft"]
    """PEFT's format."""
    step_number: int
    files: list[AdapterFile]
    """All files, to download by id from `/v1/files/{file_id}/content`."""
    archive: AdapterFile
    """All files as one tar."""


def render_checkpoint(checkpoint: Checkpoint, best_id: str | None) -> dict[str, Any]:
    """`best` is true for the checkpoint with the lowest full validation loss of the job."""
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": unix_seconds(checkpoint.created_at),
        "fine_tuning_job_id": checkpoint.job_id,
        "fine_tuned_model_checkpoint": checkpoint.name,
        "step_number": checkpoint.step_number,
        "best": checkpoint.id == best_id,
        "metrics": checkpoint.metrics,
        "result_files": checkpoint.file_ids,
        "adapter_archive_file_id": checkpoint.archive_file_id,
    }


def render_adapter(adapter: Adapter) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.adapter",
        "fine_tuning_job_id": adapter.job.id,
        "fine_tuned_model": adapter.checkpoint.name,
        "base_model": adapter.job.base_model,
        "format": "peft",
        "step_number": adapter.checkpoint.step_number,
        "files": [_render_file(file) for file in adapter.files],
        "archive": _render_file(adapter.archive),
    }


def _render_file(file: File) -> dict[str, Any]:
    return {"id": file.id, "filename": file.filename, "bytes": file.bytes, "sha256": file.sha256}
