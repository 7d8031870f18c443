"""Descriptions of projects, keys and the audit log."""

from __future__ import annotations

BY_SCHEMA = {
    "Actor.api_key": "The key; null for an operator and for the service itself.",
    "Actor.type": "An API key, an operator's command on the server, or the service itself at its first start.",
    "AuditBody.actor": "Who made the change.",
    "AuditBody.effective_at": "The time of the change, in seconds since 1970.",
    "AuditBody.ip_address": (
        "The client's address; behind a proxy that is not trusted, the proxy's address. Null for a command."
    ),
    "AuditBody.project": "The changed project, else the key's project; null for a command without a project.",
    "AuditBody.request_id": "The `x-request-id` of the response, which is also in the API's log; null for a command.",
    "CreateKey.expires_in_seconds": "The lifetime from now on; null: the key does not expire.",
    "CreateKey.name": "A label, such as the user or program that uses the key.",
    "CreateKey.scopes": "The permissions of the key; `all` allows everything in its own project.",
    "CreateProject.limits": "The limits of the project; an absent or null limit means no limit.",
    "CreateProject.name": "The display name.",
    "KeyBody.expires_at": "When the key expires, in seconds since 1970; null: never.",
    "KeyBody.name": "A label, such as the user or program that uses the key.",
    "KeyBody.owner": "Always the same.",
    "KeyBody.owner_project_access": "`active` as long as the key is valid.",
    "KeyBody.project_id": "The project of the key.",
    "KeyBody.redacted_value": "The first and last characters of the key, to recognize it by.",
    "KeyBody.revoked_at": "Seconds since 1970; null: the key was not revoked.",
    "KeyBody.rotated_at": "When a rotation created the current secret, in seconds since 1970; null: no rotation.",
    "KeyBody.scopes": "The permissions of the key.",
    "KeyBody.status": "Whether the key is valid, or why it is not.",
    "Limits.max_gpu_seconds_per_month": (
        "Includes the attempts of this calendar month (UTC) and the planned remainder of running jobs. At the limit, "
        "creating and resuming jobs are refused; running jobs continue."
    ),
    "Limits.max_queued_jobs": (
        "Jobs that wait for a worker or for validation. At the limit, creating and resuming jobs are refused."
    ),
    "Limits.max_requests_per_second": (
        "Per API process; the requests of one second may arrive at once. Null: the operator's default."
    ),
    "Limits.max_running_jobs": "At the limit, further jobs stay queued even if workers are free.",
    "Limits.max_stored_bytes": (
        "All files whose bytes still exist. At the limit, uploads are refused; results of jobs are stored."
    ),
    "OwnKey.scopes": "The permissions of the key.",
    "OwnProject.api_key": "The key of this request.",
    "Owner.type": "Null.",
    "ProjectBody.archived_at": "Seconds since 1970; null: the project is active.",
    "ProjectBody.limits": "The limits of the project.",
    "ProjectBody.name": "The display name.",
    "ProjectBody.share_weight": (
        "The share of the GPUs when several projects have queued jobs: weight 2 gets twice the time of weight 1."
    ),
    "ProjectBody.status": "`archived`: the keys are disabled; files and results are kept.",
    "ProjectWithUsage.usage": "The current usage.",
    "StatusBody.checks": "The checks of the API process that responded, as in `/readyz`.",
    "StatusBody.created_at": "When the state was read, in seconds since 1970.",
    "StatusBody.failed_jobs": "The jobs that failed within the last day.",
    "StatusBody.healthy": "Whether there is no problem of the level `problem`.",
    "StatusBody.last_backup": "The last complete backup; null: none was made.",
    "StatusBody.problems": "What an operator should do, the most urgent first.",
    "StatusBody.queue": "Unfinished jobs by status, and the oldest due ones.",
    "StatusBody.storage": "The disk of the data directory, and the stored bytes of every project.",
    "StatusBody.workers": "The workers with a heartbeat within the last minute.",
    "StatusCheck.observed": "The result in words.",
    "StatusCheck.name": "The dependency.",
    "StatusCheck.ok": "Whether the check passed.",
    "StatusCheck.required": "Whether the service is not ready if this check fails.",
    "ProblemBody.code": "The kind of the problem, for programs.",
    "ProblemBody.level": "`problem`: something does not work. `advice`: something that may become a problem.",
    "ProblemBody.message": "What was seen.",
    "ProblemBody.remedy": "What to do.",
    "OldestJob.due_at": "Since when the job could have started, in seconds since 1970.",
    "OldestJob.waiting_seconds": "The time since then.",
    "QueueStatus.oldest": "The oldest due job of `validating_files` and of `queued`; paused jobs are not due.",
    "QueueStatus.paused": "The number of paused jobs.",
    "QueueStatus.queued": "The number of queued jobs.",
    "QueueStatus.running": "The number of running jobs.",
    "QueueStatus.validating_files": "The number of jobs that wait for the validation of their files.",
    "FailedJobBody.code": "The error code of the job.",
    "FailedJobBody.finished_at": "When it failed, in seconds since 1970.",
    "FailedJobBody.message": "The error message of the job.",
    "FailedJobBody.project": "The name of the project.",
    "FailedJobBody.remedy": "What to do; null for a code of an earlier release.",
    "FailureStatus.by_code": "The number of failed jobs by error code.",
    "FailureStatus.data": "The latest 20 of them.",
    "FailureStatus.total": "The number of failed jobs.",
    "ProjectStorageBody.project": "The name of the project.",
    "ProjectStorageBody.stored_bytes": "All files whose bytes still exist.",
    "StorageStatus.disk_bytes": "The size of the disk.",
    "StorageStatus.disk_free_bytes": "The free space of the disk.",
    "StorageStatus.projects": "The projects, the largest first.",
    "BackupStatus.details": "Where it is, and what it contains.",
    "BackupStatus.finished_at": "Seconds since 1970.",
    "UpdateKey.expires_in_seconds": "The lifetime from now on; absent or null: unchanged.",
    "UpdateProject.limits": "The limits to change; null removes a limit.",
    "UpdateProject.share_weight": "The share of the GPUs when several projects have queued jobs.",
    "UsageBody.gpu_seconds_this_month": (
        "Used by attempts since the start of the month (UTC): duration times number of GPUs."
    ),
    "UsageBody.queued_jobs": "Jobs with the status `validating_files` or `queued`.",
    "UsageBody.running_jobs": "Jobs with the status `running`.",
    "UsageBody.stored_bytes": "All files whose bytes still exist, including deleted files that a job needs.",
}
