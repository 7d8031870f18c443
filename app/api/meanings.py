"""What the fields of bodies and parameters mean, for those whose schema does not say it itself.

`"Schema.field"` goes before `"field"`. A test names every field of the document that is left without a meaning.
"""

from __future__ import annotations

from typing import Any

from app.api.schemas import knobs

EVERYWHERE = {
    "id": "The id, for every call that takes one.",
    "object": "The kind of thing this is.",
    "created_at": "Seconds since 1970.",
    "bytes": "Size in bytes.",
    "filename": "A bare name, never a path.",
    "sha256": "SHA-256 of the bytes, in hexadecimal digits.",
    "message": "What was seen, what is allowed and what to do.",
    "model": "A base model, or an `ft:` model.",
    "method": "How it is trained.",
    "hyperparameters": 'The numbers that training runs with; none of them is "auto" any more.',
    "lora": "The adapter, every knob resolved.",
    "quantization": "How the frozen base is held; null: in 16 bits.",
    "seed": "Of the order of the examples and of the adapter's first values; drawn if none was given.",
    "training_file": "The id of the file it learns from.",
    "validation_file": "The id of a file whose loss is measured and never learned from.",
    "metadata": "Your own words about the job, up to 16 pairs; lists can be filtered by them.",
    "base_model": "The base model under the adapter; it is of no use without it.",
    "fine_tuning_job_id": "The job that made it.",
    "fine_tuned_model": "The `ft:` name of the result.",
    "step_number": "Optimizer steps done.",
    "total_steps": "Optimizer steps of the whole job, as planned.",
    "trained_tokens": "Tokens that go through the model, times epochs; padding is never counted.",
    "has_more": "Whether another page follows: ask with `after` set to the last id.",
    "first_id": "The first item's id; null on an empty page.",
    "last_id": "The last item's id; null on an empty page.",
    "deleted": "Always true: what could not be deleted is an error.",
    "format": "As PEFT writes it.",
    "purpose": "What the file is for: `fine-tune`, or `fine-tune-results` for what a job made.",
    "project_id": "The project.",
    "status": "How it stands.",
    "file": "The bytes. The filename that comes with them is kept as a label.",
    "data": "The items of this page.",
    "expires_after[anchor]": "From when on: its creation.",
    "expires_after[seconds]": "After how long the file is deleted by itself: an hour to 30 days.",
}  # fmt: skip
BY_SCHEMA = {
    "AdapterBody.files": "Every file, to be fetched by its id from `/v1/files/{file_id}/content`.",
    "AdapterBody.archive": "All of them as one tar.",
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
    "CreateJob.suffix": "A word of your own in the name of the `ft:` model.",
    "DeviceBody.basis": "`formula` until a job of the kind ran on such a device, `measured` from then on.",
    "DeviceBody.fits": "Whether the job fits into its memory.",
    "DeviceBody.kind": "CPU or NVIDIA GPU.",
    "DeviceBody.memory": "What takes how much of it.",
    "DeviceBody.memory_bytes": "What there is.",
    "DeviceBody.message": "The same in a sentence.",
    "DeviceBody.mode": "The layout of a step that is fastest there.",
    "DeviceBody.name": "As its driver calls it.",
    "DeviceBody.seconds": "From the start of training to the adapter.",
    "DeviceBody.workers": "Living workers that have one.",
    "Dpo.hyperparameters": 'Each may be absent, null or "auto".',
    "DpoMethod.dpo": "Its hyperparameters.",
    "DpoMethod.type": "Preference pairs.",
    "EarlyStopping.patience": "Validations in a row without a better one.",
    "EarlyStopping.threshold": "Nats by which the loss has to fall to count as better.",
    "ErrorBody.error": "What went wrong.",
    "ErrorDetail.code": "One word for programs: see the page of errors.",
    "ErrorDetail.param": "Where in the request, as a dotted path; with several problems the first.",
    "ErrorDetail.type": "`invalid_request_error`, or `server_error` where the request was good.",
    "EventBody.data": "Of `metrics`: step, losses, accuracies, learning rate, speed.",
    "EventBody.level": "How much it matters.",
    "EventBody.message": "A sentence.",
    "EventBody.type": "`metrics` for a step's numbers, else `message`.",
    "FileBody.expires_at": "When it goes by itself, in seconds since 1970; null: never.",
    "FileBody.line_count": "Lines that are not blank, of a JSONL file.",
    "FileBody.status": "`processed`: it was read and can be used.",
    "FileBody.status_details": "Null; OpenAI's older place for findings. A refused upload says them in its error.",
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
    "JobBody.phase": "What a running job does at the moment, finer than `status`.",
    "JobBody.progress": "How far it is, while it trains and after.",
    "JobBody.queue_position": "1 is next; null unless it is queued.",
    "JobBody.result_files": "The results file, a CSV of every step. The adapter's files are in `adapter`.",
    "JobBody.sample_prompts": "Prompts that are answered at every validation.",
    "JobBody.status": "OpenAI's words, and `paused`.",
    "JobBody.trained_steps": "Optimizer steps done.",
    "JobBody.trained_tokens": "Tokens that went through the model, times epochs; null until it is done.",
    "JobBody.user_provided_suffix": "The `suffix` of the request.",
    "JobError.code": "Why: see the page of errors.",
    "JobError.param": "The field of the request that is to blame, such as `training_file`; null for none.",
    "LinesBody.count": "How many.",
    "LinesBody.first_lines": "The first of them, counted from 1.",
    "LoraLimits.max_r": "The largest rank.",
    "LoraLimits.target_modules": "Layers that an adapter may be put on.",
    "MemoryBody.activations": "What the backward pass needs of the forward.",
    "MemoryBody.adapter": "The adapter with gradients and optimizer.",
    "MemoryBody.base": "The frozen weights.",
    "MemoryBody.cache": "Dequantised weights that are kept.",
    "MemoryBody.kernels": "What the kernels of a device keep.",
    "MemoryBody.live_layer": "The layer that is computed at the moment.",
    "MemoryBody.loss": "Logits and their gradient.",
    "MemoryBody.peak": "The most at any moment.",
    "MemoryBody.process": "The process before any model.",
    "MemoryBody.verify": "The check of the finished adapter.",
    "Method.dpo": "With `type` dpo.",
    "Method.supervised": "With `type` supervised.",
    "Method.type": "What is learned: answers or text, or to prefer one answer to another.",
    "Mode.cache_weights": "Whether dequantised weights are kept between layers' uses.",
    "Mode.recompute": "What is computed twice instead of kept.",
    "Mode.recompute_layers": "In how many layers.",
    "Mode.row_tokens": "Tokens that go through the model at once.",
    "ModelBody.created": "Seconds since 1970.",
    "ModelBody.fine_tunable": "Whether a job may name it as its `model`.",
    "ModelBody.id": "The name that a job gives as `model`.",
    "ModelBody.lora_limits": "Of a base model: what an adapter on it may be.",
    "ModelBody.max_context_length": "Of a base model, in tokens.",
    "ModelBody.owned_by": "`tunery`, or the server's organization for what was trained here.",
    "PermissionBody.project_id": "The project that may use the checkpoint.",
    "PlanBody.cut": "Examples longer than `context_length`.",
    "PlanBody.devices": "One for each kind of device that a living worker has.",
    "PlanBody.empty": "Examples without a token to learn; they are left out.",
    "PlanBody.examples": "In the training file.",
    "PlanBody.labelled_tokens_per_epoch": "Tokens that are learned.",
    "PlanBody.longest_document_tokens": "After the cut.",
    "PlanBody.masked": "Those of `empty` that had none even before the cut.",
    "PlanBody.message": "The verdict in a sentence.",
    "PlanBody.tokens_per_epoch": "Tokens that go through the model.",
    "PlanBody.trained_examples": "Without the empty ones.",
    "PlanBody.verdict": "Whether a living worker can run it.",
    "Progress.epoch": "Passes over the data, with a fraction.",
    "Progress.eta_seconds": "Until it is done.",
    "Progress.step": "Optimizer steps done.",
    "Progress.tokens_per_second": "Lately.",
    "Readiness.checks": "One for each thing that the service needs.",
    "ReadinessCheck.detail": "What was found.",
    "ReadinessCheck.ok": "Whether it is good.",
    "ReadinessCheck.required": "Whether the service is ready without it.",
    "Supervised.hyperparameters": 'Each may be absent, null or "auto".',
    "SupervisedMethod.supervised": "Its hyperparameters.",
    "SupervisedMethod.type": "Answers or text.",
}  # fmt: skip
PARAMETERS = {
    "file_id": "The file.",
    "job_id": "The job.",
    "model": "A model by its name; slashes in it may be raw or encoded.",
    "permission_id": "The permission.",
    "purpose": "Files of this purpose alone.",
}
OF_KNOBS = {
    "Hyperparameters": knobs.TRAINING_KNOBS | knobs.DPO_KNOBS,
    "LegacyHyperparameters": knobs.TRAINING_KNOBS,
    "LoraSpec": knobs.LORA_KNOBS,
    "QuantizationSpec": knobs.QUANTIZATION["anyOf"][0]["properties"],
}


def add_meanings(document: dict[str, Any]) -> None:
    """Give every field and parameter of the document its description, where it has none."""
    for name, schema in document["components"]["schemas"].items():
        for field, inner in schema.get("properties", {}).items():
            _describe(inner, _of_field(name, field))
    for item in document["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                _describe(parameter, PARAMETERS.get(parameter["name"]))
            for content in operation.get("requestBody", {}).get("content", {}).values():
                for field, inner in content["schema"].get("properties", {}).items():
                    _describe(inner, EVERYWHERE.get(field))


def _of_field(schema: str, field: str) -> str | None:
    knob = OF_KNOBS.get(schema, {}).get(field)
    return knob["description"] if knob else BY_SCHEMA.get(f"{schema}.{field}") or EVERYWHERE.get(field)


def _describe(inner: dict[str, Any], meaning: str | None) -> None:
    if meaning is not None and not inner.get("description"):
        inner["description"] = meaning
