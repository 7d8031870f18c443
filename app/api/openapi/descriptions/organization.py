"""Projects, keys and the audit log."""

from __future__ import annotations

BY_SCHEMA = {
    "Actor.api_key": "The key; null for an operator and for the service itself.",
    "Actor.type": "A key, an operator's command on the server, or the service itself at its first start.",
    "AuditBody.actor": "Who.",
    "AuditBody.effective_at": "When, in seconds since 1970.",
    "AuditBody.ip_address": (
        "Where the request came from; behind a proxy the proxy's, unless it is trusted. Null for a command."
    ),
    "AuditBody.project": "The project it was done to, else the key's; null for a command about none.",
    "AuditBody.request_id": "The `x-request-id` of the answer, which the log of the API has, too; null for a command.",
    "CreateKey.expires_in_seconds": "From now on; null: it does not expire.",
    "CreateKey.name": "What people call it, such as who or what uses it.",
    "CreateKey.scopes": "What it opens; `all` is everything of its own project.",
    "CreateProject.limits": "What it may use; what is absent or null has no limit.",
    "CreateProject.name": "What people call it.",
    "KeyBody.expires_at": "When it ends by itself, in seconds since 1970; null: never.",
    "KeyBody.name": "What people call it, such as who or what uses it.",
    "KeyBody.owner": "Always the same.",
    "KeyBody.owner_project_access": "`active` as long as the key opens anything.",
    "KeyBody.project_id": "The project that it opens.",
    "KeyBody.redacted_value": "Its beginning and its end, to recognize it by.",
    "KeyBody.revoked_at": "Seconds since 1970; null: it was not revoked.",
    "KeyBody.rotated_at": "When it got its present secret, in seconds since 1970; null: it has its first one.",
    "KeyBody.scopes": "What it opens.",
    "KeyBody.status": "Whether it opens anything, else why not.",
    "Limits.max_gpu_seconds_per_month": (
        "Attempts of this calendar month (UTC), and what running jobs will still take, by their plans. Reached: "
        "creating and resuming are refused, what runs goes on."
    ),
    "Limits.max_queued_jobs": (
        "Jobs that wait for a worker or for the check of their files. Reached: creating and resuming are refused."
    ),
    "Limits.max_requests_per_second": (
        "In each API process; a second's worth may come at once. Null: what the operator allows everybody."
    ),
    "Limits.max_running_jobs": "Nothing is refused: more of them wait, whatever is free.",
    "Limits.max_stored_bytes": (
        "Of every file whose bytes are still there. Reached: uploads are refused; what a job makes is kept."
    ),
    "OwnKey.scopes": "What it opens.",
    "OwnProject.api_key": "The key that asks.",
    "Owner.type": "Null.",
    "ProjectBody.archived_at": "Seconds since 1970; null: it is active.",
    "ProjectBody.limits": "What it may use.",
    "ProjectBody.name": "What people call it.",
    "ProjectBody.share_weight": (
        "Its part of the GPUs when several wait: one of weight 2 gets twice the time of one of weight 1."
    ),
    "ProjectBody.status": "`archived`: its keys open nothing any more; its files and results stay.",
    "ProjectWithUsage.usage": "What it uses now.",
    "UpdateKey.expires_in_seconds": "From now on; absent or null: as it was.",
    "UpdateProject.limits": "Those that are to change; null takes a limit away.",
    "UpdateProject.share_weight": "Its part of the GPUs when several wait.",
    "UsageBody.gpu_seconds_this_month": (
        "What attempts have taken since the month began (UTC): their duration times their GPUs."
    ),
    "UsageBody.queued_jobs": "Jobs in `validating_files` and `queued`.",
    "UsageBody.running_jobs": "Jobs in `running`.",
    "UsageBody.stored_bytes": "Of every file whose bytes are still there, a deleted one that a job needs included.",
}  # fmt: skip
