"""Descriptions of jobs, their results, and exports."""

from __future__ import annotations

BY_SCHEMA = {
    "AdapterOfJob.format": "PEFT's format.",
    "AdapterOfJob.files": "Ids of the files of the adapter.",
    "AdapterOfJob.archive_file_id": "All files as one tar: this file, or `/adapter/archive` of the job.",
    "AdapterOfJob.sha256": "SHA-256 of the archive.",
    "AdapterOfJob.bytes": "Size of the archive.",
    "DpoMethod.dpo": "The hyperparameters.",
    "DpoMethod.type": "Preference pairs.",
    "JobError.cause": "What this code means; null for a code of an earlier version.",
    "JobError.remedy": "What to do about it.",
    "JobBody.adapter": "The trained weights, once the job has succeeded.",
    "JobBody.compatibility": "Which inference engines serve the adapter as it is, and what to do for the others.",
    "JobBody.attempts": "How often training has started: more than once after a pause or a lost worker.",
    "JobBody.deliver_to": "The delivery targets that get the adapter when the job has succeeded.",
    "JobBody.deliveries": "Where its adapters were or are being delivered, oldest first.",
    "JobBody.error": "Why the job failed; null in every other state.",
    "JobBody.estimated_finish": "Seconds since 1970, while the job runs.",
    "JobBody.fine_tuned_model": "The `ft:` name of the result, once the job has succeeded.",
    "JobBody.file_origins": "Where its files come from, if they were imported from another service; else null.",
    "FileOrigins.training_file": "The origin of the training file; null: it was not imported.",
    "FileOrigins.validation_file": "The origin of the validation file; null: it was not imported, or there is none.",
    "JobBody.finished_at": "Seconds since 1970; null until the job has ended.",
    "JobBody.hyperparameters": "OpenAI's older place for three hyperparameters; empty for `dpo`.",
    "JobBody.integrations": "Empty.",
    "JobBody.method": "The method with the resolved hyperparameters.",
    "JobBody.model": "The requested model: a base model, or the `ft:` model that the job trains further.",
    "JobBody.model_alias": "The name in the request, if it is an alias of the base model; else null.",
    "JobBody.organization_id": "The server's name (`TUNERY_ORGANIZATION`).",
    "JobBody.phase": (
        "The current stage of a running job, finer than `status`. `waiting_for_storage` for a queued job whose last "
        "attempt found a full disk; it is retried automatically."
    ),
    "JobBody.pause_requested": "Whether a running job will be `paused` at its next step.",
    "JobBody.progress": "The progress, from the start of training on.",
    "JobBody.result_files": "The results file, a CSV with a row per step. The adapter's files are in `adapter`.",
    "JobBody.sample_prompts": "Prompts that the model answers at every validation.",
    "JobBody.started_at": "When training first started, in seconds since 1970; null until then.",
    "JobBody.status": "OpenAI's statuses, and `paused`.",
    "JobBody.training_seconds": (
        "The duration of the training attempts that have ended, without pauses and waits; a running attempt adds the "
        "time since `attempt_started_at`."
    ),
    "JobBody.attempt_started_at": (
        "When the running training attempt started, in seconds since 1970; null while none runs."
    ),
    "JobBody.trained_steps": "Optimizer steps done.",
    "JobBody.trained_tokens": "Tokens that the model processed, in all epochs; null until the job has ended.",
    "JobBody.cloned_from": "The job that it was cloned from; null: it is not a clone.",
    "JobBody.request": (
        "The body of the request that created the job, as it was sent; of a clone, its changes. Null for a job of an "
        "earlier release."
    ),
    "JobBody.expected_start": (
        "A forecast, in seconds since 1970; null unless the job is queued and a live worker can run it."
    ),
    "JobBody.priority": "Order among the queued jobs of the project: higher runs first.",
    "JobBody.queue_position": (
        "The position over all projects, forecast every few seconds; 1 is next. Null unless the job is queued."
    ),
    "JobBody.urgent": "Whether the job runs before all jobs that are not urgent, of every project.",
    "JobBody.warnings": (
        "Problems of the request and, after validation, of the files that do not fail the job but may be unintended."
    ),
    "JobBody.waiting_for": (
        "What no live worker offers (a model, labels, memory), or that the job is too large for a slot and waits for "
        "a whole GPU, in a sentence; null if a worker can run the job."
    ),
    "JobBody.worker_labels": "Only a worker with all of these labels runs the job.",
    "JobBody.user_provided_suffix": "The `suffix` of the request.",
    "JobError.code": "The reason: see the page of errors.",
    "JobError.param": "The field of the request that caused the error, such as `training_file`; null for none.",
    "Progress.epoch": "Passes over the data, with a fraction.",
    "Progress.eta_seconds": "Seconds until the end.",
    "Progress.step": "Optimizer steps done.",
    "Progress.tokens_per_second": "The recent speed.",
    "SupervisedMethod.supervised": "The hyperparameters.",
    "SupervisedMethod.type": "Answers or text.",
}
