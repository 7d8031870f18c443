"""Descriptions of jobs, their results, and exports."""

from __future__ import annotations

BY_SCHEMA = {
    "AdapterBody.format": "PEFT's format.",
    "AdapterBody.files": "All files, to download by id from `/v1/files/{file_id}/content`.",
    "AdapterBody.archive": "All files as one tar.",
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
    "EventBody.data": "For `metrics`: step, losses, accuracies, learning rate, speed.",
    "EventBody.level": "The severity.",
    "EventBody.message": "The event in a sentence.",
    "EventBody.type": "`metrics` for the metrics of a step, else `message`.",
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
