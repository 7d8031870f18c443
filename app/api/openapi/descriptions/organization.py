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
    "ChangeRetention.rules": "The rules to change.",
    "CreateKey.expires_in_seconds": "The lifetime from now on; null: the key does not expire.",
    "CreateKey.name": "A label, such as the user or program that uses the key.",
    "CreateKey.scopes": "The permissions of the key; `all` allows everything in its own project.",
    "CreateProject.limits": "The limits of the project; an absent or null limit means no limit.",
    "CreateProject.name": "The display name.",
    "DueBody.count": "The number of files, checkpoints, logs, events or exports.",
    "DueBody.size_bytes": "The bytes of their files or texts.",
    "EncryptionKeyBody.encrypts": "Whether new secrets are encrypted with it: the first key.",
    "EncryptionKeyBody.fingerprint": "The first characters of the SHA-256 of the key.",
    "EncryptionKeyBody.protects": "The number of secrets that it decrypts.",
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
        "Jobs that wait for a worker or for validation. At the limit, creating and resuming jobs are refused. "
        "Null: the operator's default."
    ),
    "Limits.max_requests_per_second": (
        "Per API process; the requests of one second may arrive at once. Null: the operator's default."
    ),
    "Limits.max_running_jobs": "At the limit, further jobs stay queued even if workers are free.",
    "Limits.max_stored_bytes": (
        "All files whose bytes still exist. At the limit, uploads are refused; results of jobs are stored."
    ),
    "OrganizationBaseModel.architecture": "The class in its config.json.",
    "OrganizationBaseModel.created_at": "When it was registered first, in seconds since 1970.",
    "OrganizationBaseModel.directory": "The same path on every worker.",
    "OrganizationBaseModel.id": "The name, which jobs give as `model`.",
    "OrganizationBaseModel.learning_rate": "The default of jobs.",
    "OrganizationBaseModel.license": "As it was registered.",
    "OrganizationBaseModel.manifest_sha256": "The SHA-256 of the digests of all files.",
    "OrganizationBaseModel.max_context_length": "The longest example in tokens.",
    "OrganizationBaseModel.parameters": "The number of weights.",
    "OrganizationBaseModel.project_id": "The only project that may use it; null: every project.",
    "OrganizationBaseModel.revision": "The commit or tag on its hub.",
    "OrganizationBaseModel.size_bytes": "The size of the weight files.",
    "OrganizationBaseModel.source": "The id on its hub.",
    "OrganizationBaseModel.target_modules": "The names of the layers that an adapter may have.",
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
    "RegisterBaseModel.directory": (
        "An absolute path inside one of the directories of `TUNERY_BASE_MODEL_DIRECTORIES`, the same on every worker. "
        "Null: the worker downloads `source` first."
    ),
    "RegisterBaseModel.learning_rate": "The default of jobs; null: derived from the hidden size.",
    "RegisterBaseModel.license": "The license, such as apache-2.0.",
    "RegisterBaseModel.name": "The name that jobs give as `model`.",
    "RegisterBaseModel.revision": "The commit or tag on its hub, for a download also a branch; needs `source`.",
    "RegisterBaseModel.source": "The id on its hub, which adapters name.",
    "RegistrationBody.directory": (
        "The directory; after a conversion to 16 bits that of the converted model. Of a download the directory of all "
        "downloads, and after its success that of the model."
    ),
    "RegistrationBody.error": "Why it failed; null: it did not.",
    "RegistrationBody.finished_at": "Seconds since 1970; null: it has not ended.",
    "RegistrationBody.learning_rate": "As requested.",
    "RegistrationBody.license": "As requested.",
    "RegistrationBody.name": "The name of the base model.",
    "RegistrationBody.notes": "What the worker noted, such as that it could not check the model.",
    "RegistrationBody.pull": "Whether the worker downloads `source` first.",
    "RegistrationBody.revision": "As requested; of a download, after its success, the commit.",
    "RegistrationBody.source": "As requested.",
    "RegistrationBody.started_at": "When a worker claimed it, in seconds since 1970; null: it waits for one.",
    "RegistrationBody.status": "`queued` until a worker with torch has time.",
    "RegistrationError.code": (
        "`refused_model`, `directory_not_allowed`, `hub_unavailable`, `worker_lost` or `server_error`."
    ),
    "RegistrationError.message": "Every reason.",
    "RetentionRuleBody.days": "The age at which they are deleted.",
    "RetentionRuleBody.due": "What the rule deletes now; null unless the request includes it.",
    "RetentionRuleBody.kind": "What the rule deletes: `logs` and `events` of ended jobs, for example.",
    "RetentionRuleBody.project": "The name of the project.",
    "RotationBody.lost": "Secrets that no key decrypts: their owners set them again, or the operator adds the key.",
    "RotationBody.rotated": "How many were re-encrypted.",
    "Rules.checkpoints": "Checkpoints of ended jobs, never a job's result.",
    "Rules.events": "Events of ended jobs, never the last one.",
    "Rules.exports": "Exports, from their end.",
    "Rules.files": "Uploaded files that no unfinished job needs.",
    "Rules.logs": "Logs of the trainer, of ended jobs.",
    "SecretBody.id": "The id of the target or the endpoint.",
    "SecretBody.key": "The fingerprint of the key that protects it; null: none does, or it is lost.",
    "SecretBody.kind": "What the secret belongs to.",
    "SecretBody.name": "The name of the target or the endpoint.",
    "SecretBody.project_id": "Its project.",
    "SecretBody.protection": (
        "`current`: by the first key. `old_key`: by another one. `unencrypted`: by none. `lost`: by a key that is gone."
    ),
    "SecretList.keys": "The keys of TUNERY_SECRET_KEYS in their order.",
    "StatusBody.checks": "The checks of the API process that responded, as in `/readyz`.",
    "StatusBody.created_at": "When the state was read, in seconds since 1970.",
    "StatusBody.deliveries": "Deliveries of adapters to the targets of all projects.",
    "StatusBody.failed_jobs": "The jobs that failed within the last day.",
    "StatusBody.healthy": "Whether there is no problem of the level `problem`.",
    "StatusBody.last_backup": "The last complete backup; null: none was made.",
    "StatusBody.problems": "What an operator should do, the most urgent first.",
    "StatusBody.queue": "Unfinished jobs by status, and the oldest due ones.",
    "StatusBody.storage": "The disk of the data directory, and the stored bytes of every project.",
    "StatusBody.webhooks": "Webhook endpoints of all projects, and the operator's.",
    "StatusBody.workers": "The workers with a heartbeat within the last minute.",
    "WebhookStatus.failing": (
        "At most 20 that accept no events, or that the sender has disabled; not those disabled by request."
    ),
    "StatusCheck.observed": "The result in words.",
    "StatusCheck.name": "The dependency.",
    "StatusCheck.ok": "Whether the check passed.",
    "StatusCheck.required": "Whether the service is not ready if this check fails.",
    "ProblemBody.code": "The kind of the problem, for programs.",
    "ProblemBody.level": "`problem`: something does not work. `advice`: something that may become a problem.",
    "ProblemBody.message": "What was observed.",
    "ProblemBody.remedy": "What to do.",
    "OldestJob.due_at": "Since when the job could have started, in seconds since 1970.",
    "OldestJob.waiting_seconds": "The time since then.",
    "DeliveryStatus.due": "Deliveries whose next attempt is due and does not run yet.",
    "DeliveryStatus.failed": "The latest that failed within the last day, at most 20.",
    "DeliveryStatus.oldest_due_seconds": "How long the oldest of them has been due; 0 without one.",
    "DeliveryStatus.pending": "Deliveries that wait for their next attempt, or are carried out now.",
    "DeliveryStatus.retried": (
        "The latest, at most 20, that wait for another attempt after one without success; `status` of the job's "
        "deliveries says whether they are to be delivered, to be found again or to be withdrawn."
    ),
    "DeliveryStatus.withdrawing": "Adapters that still have to be removed from a target.",
    "FailedDeliveryBody.error": "The reason, with what to do.",
    "FailedDeliveryBody.failed_at": "When the last attempt failed, in seconds since 1970.",
    "FailedDeliveryBody.job_id": "The job whose adapter was not delivered.",
    "FailedDeliveryBody.next_attempt_at": "The next attempt, in seconds since 1970; null: it is not tried again.",
    "FailedDeliveryBody.project": "The name of the project.",
    "FailedDeliveryBody.target": "The name of the delivery target.",
    "FailingEndpointBody.disabled_reason": "Why the sender has disabled it; null: it is enabled.",
    "FailingEndpointBody.failing_since": (
        "The first failure after the last success, in seconds since 1970; null: it was disabled for another reason."
    ),
    "FailingEndpointBody.name": "The display name.",
    "FailingEndpointBody.project": "The name of the project; null: it is the operator's webhook.",
    "FailingEndpointBody.project_id": "The project; null: it is the operator's webhook.",
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
    "StorageStatus.disk_bytes": "The size of the disk; null if the data directory cannot be read.",
    "StorageStatus.disk_free_bytes": "The free space of the disk; null if the data directory cannot be read.",
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
