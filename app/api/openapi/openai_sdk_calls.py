"""Which call of the official client sends which request. A test sends each of them and looks at what arrives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

JOBS = "/v1/fine_tuning/jobs"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{}/permissions"
HOOKS = "/v1/webhook_endpoints"
PROJECTS = "/v1/organization/projects"
KEYS = f"{PROJECTS}/{{}}/api_keys"


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
    f"POST {HOOKS}": OfficialCall("webhooks.create", body=("name", "url", "event_types")),
    f"GET {HOOKS}": OfficialCall("webhooks.list"),
    f"GET {HOOKS}/{{}}": OfficialCall("webhooks.retrieve", (0,)),
    f"POST {HOOKS}/{{}}": OfficialCall("webhooks.update", (0,), body=("name", "url", "event_types")),
    f"DELETE {HOOKS}/{{}}": OfficialCall("webhooks.delete", (0,)),
    f"POST {HOOKS}/{{}}/rotate_secret": OfficialCall(
        "webhooks.rotate_secret", (0,), body=("keep_old_secret_active_for_24_hours",)
    ),
    f"POST {HOOKS}/{{}}/test": OfficialCall("webhooks.test", (0,), body=("event_type",)),
    "GET /v1/webhook_event_types": OfficialCall("webhooks.event_types.list"),
    f"POST {PROJECTS}": OfficialCall(
        "admin.organization.projects.create", body=("name", "external_key_id", "geography", "residency")
    ),
    f"GET {PROJECTS}": OfficialCall("admin.organization.projects.list"),
    f"GET {PROJECTS}/{{}}": OfficialCall("admin.organization.projects.retrieve", (0,)),
    f"POST {PROJECTS}/{{}}": OfficialCall(
        "admin.organization.projects.update", (0,), body=("name", "external_key_id", "geography")
    ),
    f"POST {PROJECTS}/{{}}/archive": OfficialCall("admin.organization.projects.archive", (0,)),
    f"GET {KEYS}": OfficialCall("admin.organization.projects.api_keys.list", (0,)),
    f"GET {KEYS}/{{}}": OfficialCall("admin.organization.projects.api_keys.retrieve", (1,), {"project_id": 0}),
    f"POST {KEYS}/{{}}": OfficialCall(
        "admin.organization.projects.api_keys.update", (1,), {"project_id": 0}, body=("scopes", "expires_in_seconds")
    ),
    f"DELETE {KEYS}/{{}}": OfficialCall("admin.organization.projects.api_keys.delete", (1,), {"project_id": 0}),
    "GET /v1/organization/audit_logs": OfficialCall("admin.organization.audit_logs.list"),
}
