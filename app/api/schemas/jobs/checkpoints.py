"""Response bodies of checkpoints, and of the adapter of a finished job."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasPath, Field

from app.api.schemas.common import Body, JobPart, ListBody


class CheckpointBody(JobPart):
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    fine_tuned_model_checkpoint: str = Field(validation_alias="name")
    """The `ft:` name; for the result it is the name of the job's model."""
    step_number: int
    best: bool = Field(validation_alias="is_best")
    """Whether it has the lowest full validation loss of the job."""
    metrics: dict[str, float | None]
    """Losses and accuracies at this step; values that were not measured are absent."""
    result_files: list[str] = Field(validation_alias="file_ids")
    """Ids of the files of the adapter."""
    adapter_archive_file_id: str = Field(validation_alias="archive_file_id")
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

    object: Literal["fine_tuning.job.adapter"] = "fine_tuning.job.adapter"
    fine_tuning_job_id: str = Field(validation_alias=AliasPath("job", "id"))
    fine_tuned_model: str = Field(validation_alias=AliasPath("checkpoint", "name"))
    base_model: str = Field(validation_alias=AliasPath("job", "base_model"))
    format: Literal["peft"] = "peft"
    """PEFT's format."""
    step_number: int = Field(validation_alias=AliasPath("checkpoint", "step_number"))
    files: list[AdapterFile]
    """All files, to download by id from `/v1/files/{file_id}/content`."""
    archive: AdapterFile
    """All files as one tar."""
