"""Bodies of exports."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.api.schemas.common import Body, JobPart, UnixTime
from app.api.schemas.records import AdapterFile


class ExportErrorBody(Body):
    code: str
    """The error code for programs, such as `adapter_deleted`, `storage_full` or `worker_lost`."""
    message: str
    """The error in a sentence."""


class ExportBody(JobPart):
    """`model` is the name of the exported model: the job's result, or one of its checkpoints."""

    object: Literal["fine_tuning.job.export"] = "fine_tuning.job.export"
    started_at: UnixTime | None
    """When a worker first started it, in seconds since 1970; null until then."""
    finished_at: UnixTime | None
    """Seconds since 1970; null until it has succeeded or failed."""
    type: Literal["merged", "gguf", "gguf_adapter"]
    """`merged`: the base model with the adapter added to its weights. `gguf`: the same as one GGUF file.
    `gguf_adapter`: the adapter alone as a GGUF file.
    """
    quantization: Literal["F16", "Q8_0", "Q4_K_M"] | None
    """The weights of a `gguf` export, in llama.cpp's names; null for other types."""
    format: Literal["safetensors", "gguf"]
    """`safetensors`: a directory that `from_pretrained` loads. `gguf`: one file for llama.cpp and Ollama."""
    status: Literal["queued", "running", "succeeded", "failed"] = Field(validation_alias="state")
    """`queued` until a worker takes it, `running` while a worker makes it."""
    phase: Literal["waiting_for_storage", "waiting_for_worker"] | None
    """`waiting_for_storage` while it is queued after an attempt that found a full disk, which is retried.
    `waiting_for_worker` while no running worker makes exports of its type.
    """
    model: str
    """The `ft:` name of the exported model."""
    checkpoint: str = Field(validation_alias="checkpoint_id")
    """The id of the exported checkpoint; the result is a checkpoint, too."""
    step_number: int
    """Optimizer steps that the adapter was trained for."""
    base_model: str
    """The base model of the adapter."""
    attempts: int = Field(validation_alias="attempt")
    """How often a worker has started the export."""
    expected_bytes: int
    """The estimated size, which counts as stored bytes of the project; of a merged model the size of the base model."""
    bytes: int | None = Field(validation_alias="size_bytes")
    """The size of all its files; null until it has succeeded."""
    files: list[AdapterFile]
    """All files, to download from `/v1/files/{file_id}/content`. Empty until it has succeeded."""
    error: ExportErrorBody | None
    """Why the export failed; null in every other state."""
