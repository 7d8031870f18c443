"""Descriptions of jobs, their results, and exports."""

from __future__ import annotations

BY_SCHEMA = {
    "AdapterBody.format": "PEFT's format.",
    "AdapterBody.files": "All files, to download by id from `/v1/files/{file_id}/content`.",
    "AdapterBody.archive": "All files as one tar.",
    "AdapterOfJob.format": "PEFT's format.",
    "AdapterOfJob.files": "Ids of the files of the adapter.",
    "AdapterOfJob.archive_file_id": "All files as one tar: this file, or `/adapter/archive` of the job.",
    "AdapterOfJob.sha256": "SHA-256 of the archive.",
    "AdapterOfJob.bytes": "Size of the archive.",
    "AttemptBody.attempt": "The number of the attempt; checks and trainings count together.",
    "AttemptBody.ended_at": "Seconds since 1970; null while it runs.",
    "AttemptBody.gpus": "GPUs that the attempt held.",
    "AttemptBody.gpu_share": "The share of each GPU that it held: less than 1 in a slot of several.",
    "AttemptBody.memory_budget_bytes": (
        "The memory that it reserved on each GPU; null on GPUs that are not shared by several slots."
    ),
    "AttemptBody.kind": "`validate` checks the files, `train` trains.",
    "AttemptBody.reason": "Why it ended (docs/errors.md); null while it runs, and for a successful check.",
    "AttemptBody.started_at": "Seconds since 1970.",
    "AttemptBody.worker_id": "The worker, as in `GET /v1/workers`.",
    "AttemptList.data": "Oldest first.",
    "CheckpointBody.adapter_archive_file_id": "The files of the adapter as one tar.",
    "CheckpointBody.best": "Whether it has the lowest full validation loss of the job.",
    "CheckpointBody.fine_tuned_model_checkpoint": "The `ft:` name; for the result it is the name of the job's model.",
    "CheckpointBody.metrics": "Losses and accuracies at this step; values that were not measured are absent.",
    "CheckpointBody.result_files": "Ids of the files of the adapter.",
    "Compatibility.llama_cpp": "llama.cpp.",
    "Compatibility.ollama": "Ollama.",
    "Compatibility.sglang": "SGLang.",
    "Compatibility.transformers": "PEFT on transformers.",
    "Compatibility.vllm": "vLLM.",
    "DpoMethod.dpo": "The hyperparameters.",
    "DpoMethod.type": "Preference pairs.",
    "EventBody.data": "For `metrics`: step, losses, accuracies, learning rate, speed.",
    "EventBody.level": "The severity.",
    "EventBody.message": "The event in a sentence.",
    "EventBody.type": "`metrics` for the metrics of a step, else `message`.",
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
    "StepMetricsBody.data": (
        "A row for each step, oldest first, with the keys of its `metrics` event: step, losses, accuracies, learning "
        "rate, speed."
    ),
    "StepMetricsBody.fine_tuning_job_id": "The job.",
    "StepMetricsBody.total": "The number of all rows; `data` has fewer if `max_points` reduced them.",
    "LossCurveBody.best_valid_loss": "The lowest `full_valid_loss` of all steps; null: there was no full validation.",
    "LossCurveBody.fine_tuning_job_id": "The job.",
    "LossCurveBody.steps": "Evenly spaced steps up to the last one; of a repeated step, the latest run.",
    "LossCurveBody.train_losses": "The training loss of each of these steps.",
    "LossCurveList.data": "A curve for each job, in the order of `jobs`.",
    "DiffBody.config": "All resolved parameters.",
    "DiffBody.data": "The datasets: SHA-256, bytes, rows, tokens.",
    "DiffBody.environment": "The last attempt of each job: device, precision, versions, layout, worker.",
    "DiffBody.left": "The job in the path.",
    "DiffBody.result": "Status, losses, tokens, times, memory, adapter.",
    "DiffBody.right": "The job in `with`.",
    "DiffJob.cloned_from": "The job that it was cloned from, or null.",
    "DiffJob.fine_tuned_model": "The `ft:` name of the result; null until the job has succeeded.",
    "DiffJob.status": "The status of the job.",
    "DiffRow.differs": (
        "Whether the values differ in type or value. A value that is null because the job has not run yet is no "
        "difference."
    ),
    "DiffRow.left": "The value of the job in the path; null: it has none.",
    "DiffRow.path": "The dotted path of the value, such as `lora.r`.",
    "DiffRow.right": "The value of the job in `with`; null: it has none.",
    "DiffSection.differences": "The number of values that differ.",
    "DiffSection.values": "All values that at least one of the jobs has, equal ones included.",
    "ExportBody.attempts": "How often a worker has started the export.",
    "ExportBody.base_model": "The base model of the adapter.",
    "ExportBody.bytes": "The size of all its files; null until it has succeeded.",
    "ExportBody.checkpoint": "The id of the exported checkpoint; the result is a checkpoint, too.",
    "ExportBody.error": "Why the export failed; null in every other state.",
    "ExportBody.expected_bytes": (
        "The estimated size, which counts as stored bytes of the project; of a merged model the size of the base model."
    ),
    "ExportBody.files": "All files, to download from `/v1/files/{file_id}/content`. Empty until it has succeeded.",
    "ExportBody.finished_at": "Seconds since 1970; null until it has succeeded or failed.",
    "ExportBody.format": (
        "`safetensors`: a directory that `from_pretrained` loads. `gguf`: one file for llama.cpp and Ollama."
    ),
    "ExportBody.model": "The `ft:` name of the exported model.",
    "ExportBody.phase": (
        "`waiting_for_storage` while it is queued after an attempt that found a full disk, which is retried. "
        "`waiting_for_worker` while no running worker makes exports of its type."
    ),
    "ExportBody.quantization": "The weights of a `gguf` export, in llama.cpp's names; null for other types.",
    "ExportBody.started_at": "When a worker first started it, in seconds since 1970; null until then.",
    "ExportBody.status": "`queued` until a worker takes it, `running` while a worker makes it.",
    "ExportBody.step_number": "Optimizer steps that the adapter was trained for.",
    "ExportBody.type": (
        "`merged`: the base model with the adapter added to its weights. `gguf`: the same as one GGUF file. "
        "`gguf_adapter`: the adapter alone as a GGUF file."
    ),
    "ExportErrorBody.code": "The error code for programs, such as `adapter_deleted`, `storage_full` or `worker_lost`.",
    "ExportErrorBody.message": "The error in a sentence.",
}
