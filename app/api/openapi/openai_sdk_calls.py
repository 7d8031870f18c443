"""The methods of the official client by request. A test calls each of them and checks the request it sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

JOBS = "/v1/fine_tuning/jobs"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{}/permissions"
HOOKS = "/v1/webhook_endpoints"
PROJECTS = "/v1/organization/projects"
KEYS = f"{PROJECTS}/{{}}/api_keys"


@dataclass(frozen=True)
class SdkCall:
    """A method of the client. `arguments` and `by_name` are path parameters; `body` are its named body fields."""

    method: str
    arguments: tuple[int, ...] = ()  # positions in the path
    by_name: Mapping[str, int] = field(default_factory=dict)
    body: tuple[str, ...] = ()


CREATE_JOB = (
    "model",
    "training_file",
    "validation_file",
    "suffix",
    "seed",
    "metadata",
    "method",
    "hyperparameters",
    "integrations",
)

CREATE_CHAT_COMPLETION = (
    "model",
    "messages",
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "metadata",
    "modalities",
    "moderation",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
)
CREATE_COMPLETION = (
    "model",
    "prompt",
    "best_of",
    "echo",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "n",
    "presence_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "top_p",
    "user",
)

# "METHOD path" -> call, with {} for each path parameter.
CALLS: dict[str, SdkCall] = {
    "POST /v1/files": SdkCall("files.create", body=("file", "purpose", "expires_after")),
    "GET /v1/files": SdkCall("files.list"),
    "GET /v1/files/{}": SdkCall("files.retrieve", (0,)),
    "DELETE /v1/files/{}": SdkCall("files.delete", (0,)),
    "GET /v1/files/{}/content": SdkCall("files.content", (0,)),
    "POST /v1/uploads": SdkCall("uploads.create", body=("filename", "purpose", "bytes", "mime_type", "expires_after")),
    "POST /v1/uploads/{}/parts": SdkCall("uploads.parts.create", (0,), body=("data",)),
    "POST /v1/uploads/{}/complete": SdkCall("uploads.complete", (0,), body=("part_ids", "md5")),
    "POST /v1/uploads/{}/cancel": SdkCall("uploads.cancel", (0,)),
    f"POST {JOBS}": SdkCall("fine_tuning.jobs.create", body=CREATE_JOB),
    f"GET {JOBS}": SdkCall("fine_tuning.jobs.list"),
    f"GET {JOBS}/{{}}": SdkCall("fine_tuning.jobs.retrieve", (0,)),
    f"POST {JOBS}/{{}}/cancel": SdkCall("fine_tuning.jobs.cancel", (0,)),
    f"POST {JOBS}/{{}}/pause": SdkCall("fine_tuning.jobs.pause", (0,)),
    f"POST {JOBS}/{{}}/resume": SdkCall("fine_tuning.jobs.resume", (0,)),
    f"GET {JOBS}/{{}}/events": SdkCall("fine_tuning.jobs.list_events", (0,)),
    f"GET {JOBS}/{{}}/checkpoints": SdkCall("fine_tuning.jobs.checkpoints.list", (0,)),
    f"POST {PERMISSIONS}": SdkCall("fine_tuning.checkpoints.permissions.create", (0,), body=("project_ids",)),
    f"GET {PERMISSIONS}": SdkCall("fine_tuning.checkpoints.permissions.list", (0,)),
    f"DELETE {PERMISSIONS}/{{}}": SdkCall(
        "fine_tuning.checkpoints.permissions.delete", (1,), {"fine_tuned_model_checkpoint": 0}
    ),
    "POST /v1/chat/completions": SdkCall("chat.completions.create", body=CREATE_CHAT_COMPLETION),
    "POST /v1/completions": SdkCall("completions.create", body=CREATE_COMPLETION),
    "GET /v1/models": SdkCall("models.list"),
    "GET /v1/models/{}": SdkCall("models.retrieve", (0,)),
    "DELETE /v1/models/{}": SdkCall("models.delete", (0,)),
    f"POST {HOOKS}": SdkCall("webhooks.create", body=("name", "url", "event_types")),
    f"GET {HOOKS}": SdkCall("webhooks.list"),
    f"GET {HOOKS}/{{}}": SdkCall("webhooks.retrieve", (0,)),
    f"POST {HOOKS}/{{}}": SdkCall("webhooks.update", (0,), body=("name", "url", "event_types")),
    f"DELETE {HOOKS}/{{}}": SdkCall("webhooks.delete", (0,)),
    f"POST {HOOKS}/{{}}/rotate_secret": SdkCall(
        "webhooks.rotate_secret", (0,), body=("keep_old_secret_active_for_24_hours",)
    ),
    f"POST {HOOKS}/{{}}/test": SdkCall("webhooks.test", (0,), body=("event_type",)),
    "GET /v1/webhook_event_types": SdkCall("webhooks.event_types.list"),
    f"POST {PROJECTS}": SdkCall(
        "admin.organization.projects.create", body=("name", "external_key_id", "geography", "residency")
    ),
    f"GET {PROJECTS}": SdkCall("admin.organization.projects.list"),
    f"GET {PROJECTS}/{{}}": SdkCall("admin.organization.projects.retrieve", (0,)),
    f"POST {PROJECTS}/{{}}": SdkCall(
        "admin.organization.projects.update", (0,), body=("name", "external_key_id", "geography")
    ),
    f"POST {PROJECTS}/{{}}/archive": SdkCall("admin.organization.projects.archive", (0,)),
    f"GET {KEYS}": SdkCall("admin.organization.projects.api_keys.list", (0,)),
    f"GET {KEYS}/{{}}": SdkCall("admin.organization.projects.api_keys.retrieve", (1,), {"project_id": 0}),
    f"POST {KEYS}/{{}}": SdkCall(
        "admin.organization.projects.api_keys.update", (1,), {"project_id": 0}, body=("scopes", "expires_in_seconds")
    ),
    f"DELETE {KEYS}/{{}}": SdkCall("admin.organization.projects.api_keys.delete", (1,), {"project_id": 0}),
    "GET /v1/organization/audit_logs": SdkCall("admin.organization.audit_logs.list"),
}
