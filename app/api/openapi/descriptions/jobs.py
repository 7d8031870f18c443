"""Jobs, what they leave behind, and what is made of it."""

from __future__ import annotations

BY_SCHEMA = {
    "AdapterBody.format": "As PEFT writes it.",
    "AdapterBody.files": "Every file, to be fetched by its id from `/v1/files/{file_id}/content`.",
    "AdapterBody.archive": "All of them as one tar.",
    "AdapterOfJob.format": "As PEFT writes it.",
    "AdapterOfJob.files": "Ids of the files of the adapter.",
    "AdapterOfJob.archive_file_id": "All of them as one tar: this file, or `/adapter/archive` of the job.",
    "AdapterOfJob.sha256": "Of the archive.",
    "AdapterOfJob.bytes": "Of the archive.",
    "CheckpointBody.adapter_archive_file_id": "The files as one tar.",
    "CheckpointBody.best": "It has the lowest full validation loss of all that the job measured.",
    "CheckpointBody.fine_tuned_model_checkpoint": "Its `ft:` name; the result's is that of the job.",
    "CheckpointBody.metrics": "Losses and accuracies at its step; absent is what was not measured there.",
    "CheckpointBody.result_files": "Ids of the files of its adapter.",
    "CreateJob.integrations": "None is offered: null or empty.",
    "CreateJob.method": "`supervised` unless said otherwise.",
    "CreateJob.seed": "Drawn if absent, and shown by the job.",
    "CreateJob.suffix": "A word of your own in the name of the `ft:` model; what a URL cannot hold is a dash there.",
    "Dpo.hyperparameters": 'Each may be absent, null or "auto".',
    "DpoMethod.dpo": "Its hyperparameters.",
    "DpoMethod.type": "Preference pairs.",
    "EarlyStopping.patience": "Validations in a row without a better one.",
    "EarlyStopping.threshold": "Nats by which the loss has to fall to count as better.",
    "EventBody.data": "Of `metrics`: step, losses, accuracies, learning rate, speed.",
    "EventBody.level": "How much it matters.",
    "EventBody.message": "A sentence.",
    "EventBody.type": "`metrics` for a step's numbers, else `message`.",
    "JobBody.adapter": "The trained weights, once the job succeeded.",
    "JobBody.attempts": "How often training was begun: more than once after a pause or a lost worker.",
    "JobBody.error": "Why it failed; null in every other state.",
    "JobBody.estimated_finish": "Seconds since 1970, while it runs.",
    "JobBody.fine_tuned_model": "The `ft:` name of the result, once it succeeded.",
    "JobBody.finished_at": "Seconds since 1970; null until it has ended.",
    "JobBody.hyperparameters": "OpenAI's older place for three of them; empty for `dpo`.",
    "JobBody.integrations": "Empty.",
    "JobBody.method": "The method with every hyperparameter as a number.",
    "JobBody.model": "What was asked for: a base model, or the `ft:` model it goes on from.",
    "JobBody.organization_id": "The server's name (`TUNERY_ORGANIZATION`).",
    "JobBody.phase": (
        "What a running job does at the moment, finer than `status`. Of a queued one `waiting_for_storage`: its last "
        "attempt met a full disk, and it is tried again by itself."
    ),
    "JobBody.progress": "How far it is, while it trains and after.",
    "JobBody.result_files": "The results file, a CSV of every step. The adapter's files are in `adapter`.",
    "JobBody.sample_prompts": "Prompts that are answered at every validation.",
    "JobBody.status": "OpenAI's words, and `paused`.",
    "JobBody.trained_steps": "Optimizer steps done.",
    "JobBody.trained_tokens": "Tokens that went through the model, times epochs; null until it is done.",
    "JobBody.cloned_from": "The job that it was cloned from; null: it was created by itself.",
    "JobBody.expected_start": (
        "A forecast, in seconds since 1970; null unless it is queued and some living worker can take it."
    ),
    "JobBody.priority": "Among the waiting jobs of the project: higher goes first.",
    "JobBody.queue_position": "1 is next, over all projects, as forecast every few seconds; null unless it is queued.",
    "JobBody.urgent": "Whether it goes before all jobs that are not urgent, whosever they are.",
    "JobBody.warnings": (
        "What it does although it may not be meant: of the request and, once validated, of its files. Empty: nothing."
    ),
    "JobBody.waiting_for": (
        "What no living worker offers (a model, labels, memory), in a sentence; null where one can take it."
    ),
    "JobBody.worker_labels": "A worker must have all of these to take it.",
    "JobBody.user_provided_suffix": "The `suffix` of the request.",
    "JobError.code": "Why: see the page of errors.",
    "JobError.param": "The field of the request that is to blame, such as `training_file`; null for none.",
    "Method.dpo": "With `type` dpo.",
    "Method.supervised": "With `type` supervised.",
    "Method.type": "What is learned: answers or text, or to prefer one answer to another.",
    "Progress.epoch": "Passes over the data, with a fraction.",
    "Progress.eta_seconds": "Until it is done.",
    "Progress.step": "Optimizer steps done.",
    "Progress.tokens_per_second": "Lately.",
    "Supervised.hyperparameters": 'Each may be absent, null or "auto".',
    "SupervisedMethod.supervised": "Its hyperparameters.",
    "SupervisedMethod.type": "Answers or text.",
    "StepMetricsBody.data": (
        "A row for each step, oldest first, with the keys of its `metrics` event: step, losses, accuracies, learning "
        "rate, speed."
    ),
    "StepMetricsBody.fine_tuning_job_id": "The job.",
    "StepMetricsBody.total": "How many rows there are; `data` has fewer where `max_points` thinned them out.",
    "DiffBody.config": "Every resolved knob.",
    "DiffBody.data": "The data sets: SHA-256, bytes, rows, tokens.",
    "DiffBody.environment": "Of each job's last attempt: device, precision, versions, layout, worker.",
    "DiffBody.left": "The job of the path.",
    "DiffBody.result": "Status, losses, tokens, times, memory, adapter.",
    "DiffBody.right": "The job of `with`.",
    "DiffJob.cloned_from": "The job that it was cloned from, or null.",
    "DiffJob.fine_tuned_model": "The `ft:` name of the result; null until it has succeeded.",
    "DiffJob.status": "As the job says it.",
    "DiffRow.differs": (
        "Whether the two values are not the same, in type or in value. What only a run tells is null before it, and "
        "that is no difference."
    ),
    "DiffRow.left": "The value of the job of the path; null: it has none.",
    "DiffRow.path": "Where the value stands, dotted, such as `lora.r`.",
    "DiffRow.right": "The value of the job of `with`; null: it has none.",
    "DiffSection.differences": "How many of the values differ.",
    "DiffSection.values": "Every value that at least one of the jobs has, those that are the same included.",
    "ExportBody.attempts": "How often a worker began it.",
    "ExportBody.base_model": "The base model that the adapter is merged into.",
    "ExportBody.bytes": "Of all its files together; null until it has succeeded.",
    "ExportBody.checkpoint": "The id of the checkpoint whose adapter it is; that of the result, too, is one.",
    "ExportBody.error": "Why it failed; null in every other state.",
    "ExportBody.expected_bytes": (
        "What it is reckoned to take of the project's stored bytes: as much as the base model."
    ),
    "ExportBody.files": (
        "Empty until it has succeeded; then every file, to be fetched from `/v1/files/{file_id}/content`."
    ),
    "ExportBody.finished_at": "Seconds since 1970; null until it has succeeded or failed.",
    "ExportBody.format": "Weights as `safetensors`, in a directory that `from_pretrained` loads.",
    "ExportBody.model": "The `ft:` name of what is exported.",
    "ExportBody.phase": (
        "`waiting_for_storage` while it is queued after an attempt that met a full disk; it is tried again by itself."
    ),
    "ExportBody.started_at": "When a worker first began it, in seconds since 1970; null until then.",
    "ExportBody.status": "`queued` until a worker takes it, `running` while it is made.",
    "ExportBody.step_number": "Optimizer steps that the adapter was trained for.",
    "ExportBody.type": "`merged`: the base model with the adapter added into its weights.",
    "ExportErrorBody.code": "One word for programs, such as `adapter_deleted`, `storage_full` or `worker_lost`.",
    "ExportErrorBody.message": "The same in a sentence.",
}  # fmt: skip
