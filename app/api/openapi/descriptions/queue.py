"""Workers and the queue."""

from __future__ import annotations

BY_SCHEMA = {
    "WorkerDevice.count": "GPUs that it gives to one job.",
    "WorkerDevice.kind": "`cpu` or `cuda`; null: it does not say.",
    "WorkerDevice.memory_bytes": (
        "What the card has, or what this worker may use of the machine; null: it does not say."
    ),
    "WorkerDevice.name": "As its driver calls it; null: it does not say.",
    "WorkerBody.device": "What it computes on.",
    "WorkerBody.hostname": "The machine; null but for admin keys.",
    "WorkerBody.job_id": "The job it is at; null: none, or another project's.",
    "WorkerBody.labels": "What a job may ask for as `worker_labels`.",
    "WorkerBody.models": "Base models that it can train, of those that you may know.",
    "WorkerBody.name": "As it calls itself; null but for admin keys.",
    "WorkerBody.pid": "Of its process; null but for admin keys.",
    "WorkerBody.queue": "`gpu` trains, on whatever device it has; `cpu` checks files.",
    "WorkerBody.seen_at": "Its last sign of life, in seconds since 1970.",
    "WorkerBody.started_at": "Seconds since 1970.",
    "WorkerBody.status": "`busy`: it has a job.",
    "WorkerBody.versions": "Of the libraries it works with; null but for admin keys.",
    "WorkerCounts.alive": "Those that gave a sign of life within the last minute.",
    "WorkerCounts.busy": "Those of them that have a job.",
    "JobCounts.running": "Jobs that run.",
    "JobCounts.validating": "Jobs whose files are checked or wait for it.",
    "JobCounts.waiting": "Jobs that wait for a worker.",
    "QueueBody.has_more": "Whether more wait than are shown: ask with a larger `limit`.",
    "QueueBody.others": "Counts of all other projects' jobs.",
    "QueueBody.own": "Counts of your project's jobs.",
    "QueueBody.projects": "How your project stands; for admin keys every project, the one whose turn it is first.",
    "QueueBody.running": (
        "Your project's jobs that run, for admin keys everybody's; the one that began first comes first."
    ),
    "QueueBody.waiting": "Your project's jobs that wait, for admin keys everybody's, in their order.",
    "QueueBody.workers": "Workers that train.",
    "RunningBody.expected_finish": "By its own word, else by its plan; in seconds since 1970.",
    "RunningBody.gives_way": (
        "Whether it was asked to stop at its next step for an urgent job; it goes on later where it was."
    ),
    "RunningBody.model": "Its base model.",
    "RunningBody.phase": "What it does at the moment; null: not known yet.",
    "RunningBody.priority": "As the job says it.",
    "RunningBody.project_id": "Whose job it is.",
    "RunningBody.started_at": "When this attempt began, in seconds since 1970.",
    "RunningBody.urgent": "As the job says it.",
    "RunningBody.worker_id": "Who is at it, as in `/v1/workers`.",
    "WaitingBody.expected_start": (
        "A forecast, in seconds since 1970; null: nobody can take it, or no forecast was made yet."
    ),
    "WaitingBody.model": "Its base model.",
    "WaitingBody.planned_seconds": "How long it is reckoned to train; null until that is known.",
    "WaitingBody.phase": (
        "`waiting_for_storage` after an attempt that met a full disk: it is tried again by itself; else null."
    ),
    "WaitingBody.position": "1 is next, over all projects; one that has just come is the last until the next forecast.",
    "WaitingBody.priority": "Among the waiting jobs of its project: higher goes first.",
    "WaitingBody.project_id": "Whose job it is.",
    "WaitingBody.urgent": "Whether it goes before all jobs that are not urgent.",
    "WaitingBody.waiting_for": "What no living worker offers, in a sentence; null where one can take it.",
    "WaitingBody.worker_labels": "A worker must have all of these to take it.",
    "StandingBody.gpu_seconds": (
        "What it has used; older use fades, by half in a day unless the operator says otherwise."
    ),
    "StandingBody.held_gpu_seconds": "What its running jobs are still planned to use.",
    "StandingBody.max_running_jobs": "So many run at most; null: no limit.",
    "StandingBody.running_jobs": "How many run.",
    "StandingBody.share": (
        "`gpu_seconds` and `held_gpu_seconds` together, divided by `share_weight`: the least goes first."
    ),
    "StandingBody.share_weight": "Its part of the GPUs when several wait.",
}  # fmt: skip
