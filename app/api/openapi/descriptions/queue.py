"""Descriptions of workers and the queue."""

from __future__ import annotations

BY_SCHEMA = {
    "WorkerDevice.count": "The number of GPUs that it assigns to a job.",
    "WorkerDevice.slots_per_gpu": "The number of workers that share the GPU, each with an equal part of its memory.",
    "WorkerDevice.slot_bytes": "The memory of a job in one slot; null on a GPU that is not shared.",
    "WorkerDevice.kind": "`cpu` or `cuda`; null: unknown.",
    "WorkerDevice.memory_bytes": "The memory of the GPU, or the memory that the worker may use; null: unknown.",
    "WorkerDevice.name": "The name that the driver reports; null: unknown.",
    "WorkerBody.device": "The device that it computes on.",
    "WorkerBody.hostname": "The host; null except for admin keys.",
    "WorkerBody.job_id": "The job that it runs; null: none, or a job of another project.",
    "WorkerBody.evaluation_id": "The evaluation that it runs; null: none, or one of another project.",
    "WorkerBody.labels": "Labels that a job can require with `worker_labels`.",
    "WorkerBody.models": "Base models that it can train, restricted to those visible to you.",
    "WorkerBody.name": "The configured name; null except for admin keys.",
    "WorkerBody.pid": "The process id; null except for admin keys.",
    "WorkerBody.queue": "`gpu` trains, on any device; `cpu` validates files.",
    "WorkerBody.seen_at": "The last heartbeat, in seconds since 1970.",
    "WorkerBody.started_at": "Seconds since 1970.",
    "WorkerBody.status": "`busy`: it runs a job or an evaluation.",
    "WorkerBody.versions": "Versions of its libraries; null except for admin keys.",
    "WorkerCounts.alive": "Workers with a heartbeat within the last minute.",
    "WorkerCounts.busy": "Workers among them that run a job or an evaluation.",
    "JobCounts.running": "Running jobs.",
    "JobCounts.validating": "Jobs whose files are being validated or wait for validation.",
    "JobCounts.waiting": "Jobs that wait for a worker.",
    "QueueBody.evaluations": (
        "Unfinished evaluations of your project, for admin keys of all projects, running ones first; at most `limit`."
    ),
    "QueuedEvaluation.answers": "The answers so far, of base model and adapter together; null: not known yet.",
    "QueuedEvaluation.total_answers": "All answers that are generated; null: not known yet.",
    "QueuedEvaluation.created_at": "Seconds since 1970.",
    "QueuedEvaluation.estimated_seconds": "An upper estimate of the duration; null until it is known.",
    "QueuedEvaluation.fine_tuning_job_id": "The job whose adapter it evaluates.",
    "QueuedEvaluation.id": "The evaluation.",
    "QueuedEvaluation.model": "The base model.",
    "QueuedEvaluation.project_id": "The project of the job.",
    "QueuedEvaluation.started_at": "When this attempt started, in seconds since 1970; null: it waits.",
    "QueuedEvaluation.status": "`running`, or `queued`.",
    "QueuedEvaluation.worker_id": "The worker that runs it, as in `/v1/workers`; null: it waits.",
    "QueueBody.has_more": "Whether more jobs wait than are shown: send a larger `limit`.",
    "QueueBody.others": "Counts of all other projects' jobs.",
    "QueueBody.own": "Counts of your project's jobs.",
    "QueueBody.projects": "The usage of your project; for admin keys of all projects, the next in turn first.",
    "QueueBody.running": "Running jobs of your project, for admin keys of all projects, oldest attempt first.",
    "QueueBody.waiting": "Queued jobs of your project, for admin keys of all projects, in order.",
    "QueueBody.workers": "Workers that train.",
    "RunningBody.expected_finish": "By the job's own estimate, else by its plan; in seconds since 1970.",
    "RunningBody.gives_way": (
        "Whether it is being preempted: it stops at its next step for an urgent job and resumes later."
    ),
    "RunningBody.model": "The base model.",
    "RunningBody.phase": "The current stage; null: not known yet.",
    "RunningBody.priority": "The priority of the job.",
    "RunningBody.project_id": "The project of the job.",
    "RunningBody.started_at": "When this attempt started, in seconds since 1970.",
    "RunningBody.urgent": "Whether the job is urgent.",
    "RunningBody.worker_id": "The worker that runs it, as in `/v1/workers`.",
    "WaitingBody.expected_start": (
        "A forecast, in seconds since 1970; null: no worker can run it, or there is no forecast yet."
    ),
    "WaitingBody.model": "The base model.",
    "WaitingBody.planned_seconds": "The estimated duration of training; null until it is known.",
    "WaitingBody.phase": (
        "`waiting_for_storage` after an attempt that found a full disk, with an automatic retry; else null."
    ),
    "WaitingBody.position": "The position over all projects; 1 is next. A new job is last until the next forecast.",
    "WaitingBody.priority": "Order among the queued jobs of its project: higher runs first.",
    "WaitingBody.project_id": "The project of the job.",
    "WaitingBody.urgent": "Whether it runs before all jobs that are not urgent.",
    "WaitingBody.waiting_for": (
        "What no live worker offers, or that the job waits for a whole GPU, in a sentence; null if a worker can run it."
    ),
    "WaitingBody.worker_labels": "Only a worker with all of these labels runs it.",
    "StandingBody.gpu_seconds": (
        "Past usage with exponential decay; the half-life is a day unless the operator changes it."
    ),
    "StandingBody.held_gpu_seconds": "What its running jobs are still planned to use.",
    "StandingBody.max_running_jobs": "The maximum number of running jobs; null: no limit.",
    "StandingBody.running_jobs": "The number of running jobs.",
    "StandingBody.share": (
        "The sum of `gpu_seconds` and `held_gpu_seconds`, divided by `share_weight`: the smallest goes first."
    ),
    "StandingBody.share_weight": "The share of the GPUs when several projects have queued jobs.",
}
