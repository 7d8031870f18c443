"""The methods of the official client by operation. A test sends an example of each and checks the request."""

from __future__ import annotations

JOBS = "/v1/fine_tuning/jobs"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{}/permissions"
HOOKS = "/v1/webhook_endpoints"
PROJECTS = "/v1/organization/projects"
KEYS = f"{PROJECTS}/{{}}/api_keys"
CALLS = {
    "POST /v1/files": "files.create",
    "GET /v1/files": "files.list",
    "GET /v1/files/{}": "files.retrieve",
    "DELETE /v1/files/{}": "files.delete",
    "GET /v1/files/{}/content": "files.content",
    "POST /v1/uploads": "uploads.create",
    "POST /v1/uploads/{}/parts": "uploads.parts.create",
    "POST /v1/uploads/{}/complete": "uploads.complete",
    "POST /v1/uploads/{}/cancel": "uploads.cancel",
    f"POST {JOBS}": "fine_tuning.jobs.create",
    f"GET {JOBS}": "fine_tuning.jobs.list",
    f"GET {JOBS}/{{}}": "fine_tuning.jobs.retrieve",
    f"POST {JOBS}/{{}}/cancel": "fine_tuning.jobs.cancel",
    f"POST {JOBS}/{{}}/pause": "fine_tuning.jobs.pause",
    f"POST {JOBS}/{{}}/resume": "fine_tuning.jobs.resume",
    f"GET {JOBS}/{{}}/events": "fine_tuning.jobs.list_events",
    f"GET {JOBS}/{{}}/checkpoints": "fine_tuning.jobs.checkpoints.list",
    f"POST {PERMISSIONS}": "fine_tuning.checkpoints.permissions.create",
    f"GET {PERMISSIONS}": "fine_tuning.checkpoints.permissions.list",
    f"DELETE {PERMISSIONS}/{{}}": "fine_tuning.checkpoints.permissions.delete",
    "POST /v1/chat/completions": "chat.completions.create",
    "POST /v1/completions": "completions.create",
    "GET /v1/models": "models.list",
    "GET /v1/models/{}": "models.retrieve",
    "DELETE /v1/models/{}": "models.delete",
    f"POST {HOOKS}": "webhooks.create",
    f"GET {HOOKS}": "webhooks.list",
    f"GET {HOOKS}/{{}}": "webhooks.retrieve",
    f"POST {HOOKS}/{{}}": "webhooks.update",
    f"DELETE {HOOKS}/{{}}": "webhooks.delete",
    f"POST {HOOKS}/{{}}/rotate_secret": "webhooks.rotate_secret",
    f"POST {HOOKS}/{{}}/test": "webhooks.test",
    "GET /v1/webhook_event_types": "webhooks.event_types.list",
    f"POST {PROJECTS}": "admin.organization.projects.create",
    f"GET {PROJECTS}": "admin.organization.projects.list",
    f"GET {PROJECTS}/{{}}": "admin.organization.projects.retrieve",
    f"POST {PROJECTS}/{{}}": "admin.organization.projects.update",
    f"POST {PROJECTS}/{{}}/archive": "admin.organization.projects.archive",
    f"GET {KEYS}": "admin.organization.projects.api_keys.list",
    f"GET {KEYS}/{{}}": "admin.organization.projects.api_keys.retrieve",
    f"POST {KEYS}/{{}}": "admin.organization.projects.api_keys.update",
    f"DELETE {KEYS}/{{}}": "admin.organization.projects.api_keys.delete",
    "GET /v1/organization/audit_logs": "admin.organization.audit_logs.list",
}
# The last parameter of a path is positional; the one before it has this name in the client.
PARENTS = {PERMISSIONS: "fine_tuned_model_checkpoint", KEYS: "project_id"}
OUR_FIELDS = ("cancel_jobs", "enabled", "limits", "lora", "quantization")  # of bodies; the client has no names for them
