"""Which call of the official client sends which request. A test sends each of them and looks at what arrives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

JOBS = "/v1/fine_tuning/jobs"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{}/permissions"


@dataclass(frozen=True)
class OfficialCall:
    """`arguments` and `by_name` are parameters of the path, `body` the fields that the method knows by name."""

    method: str
    arguments: tuple[int, ...] = ()  # positions in the path
    by_name: Mapping[str, int] = field(default_factory=dict)
    body: tuple[str, ...] = ()


CREATE_JOB = (
    "model", "training_file", "validation_file", "suffix", "seed", "metadata", "method", "hyperparameters",
    "integrations",
)  # fmt: skip

# "METHOD path", with {} for whatever the path's parameters are called.
CALLS: dict[str, OfficialCall] = {
    "POST /v1/files": OfficialCall("files.create", body=("file", "purpose", "expires_after")),
    "GET /v1/files": OfficialCall("files.list"),
    "GET /v1/files/{}": OfficialCall("files.retrieve", (0,)),
    "DELETE /v1/files/{}": OfficialCall("files.delete", (0,)),
    "GET /v1/files/{}/content": OfficialCall("files.content", (0,)),
    "POST /v1/uploads": OfficialCall(
        "uploads.create", body=("filename", "purpose", "bytes", "mime_type", "expires_after")
    ),
    "POST /v1/uploads/{}/parts": OfficialCall("uploads.parts.create", (0,), body=("data",)),
    "POST /v1/uploads/{}/complete": OfficialCall("uploads.complete", (0,), body=("part_ids", "md5")),
    "POST /v1/uploads/{}/cancel": OfficialCall("uploads.cancel", (0,)),
    f"POST {JOBS}": OfficialCall("fine_tuning.jobs.create", body=CREATE_JOB),
    f"GET {JOBS}": OfficialCall("fine_tuning.jobs.list"),
    f"GET {JOBS}/{{}}": OfficialCall("fine_tuning.jobs.retrieve", (0,)),
    f"POST {JOBS}/{{}}/cancel": OfficialCall("fine_tuning.jobs.cancel", (0,)),
    f"POST {JOBS}/{{}}/pause": OfficialCall("fine_tuning.jobs.pause", (0,)),
    f"POST {JOBS}/{{}}/resume": OfficialCall("fine_tuning.jobs.resume", (0,)),
    f"GET {JOBS}/{{}}/events": OfficialCall("fine_tuning.jobs.list_events", (0,)),
    f"GET {JOBS}/{{}}/checkpoints": OfficialCall("fine_tuning.jobs.checkpoints.list", (0,)),
    f"POST {PERMISSIONS}": OfficialCall("fine_tuning.checkpoints.permissions.create", (0,), body=("project_ids",)),
    f"GET {PERMISSIONS}": OfficialCall("fine_tuning.checkpoints.permissions.list", (0,)),
    f"DELETE {PERMISSIONS}/{{}}": OfficialCall(
        "fine_tuning.checkpoints.permissions.delete", (1,), {"fine_tuned_model_checkpoint": 0}
    ),
    "GET /v1/models": OfficialCall("models.list"),
    "GET /v1/models/{}": OfficialCall("models.retrieve", (0,)),
    "DELETE /v1/models/{}": OfficialCall("models.delete", (0,)),
}
