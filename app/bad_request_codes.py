"""The error codes of BadRequest, each with its cause, its remedy and an example of its message."""

from __future__ import annotations

from typing import NamedTuple


class ErrorCode(NamedTuple):
    """One error code. `message` is an example; `…` stands for the variable parts."""

    code: str
    cause: str
    remedy: str
    message: str


BAD_REQUEST_CODES: tuple[ErrorCode, ...] = (
    ErrorCode(
        "invalid_value",
        "A value is out of its bounds, or contradicts the rest of the request.",
        "Change the field in `param`; the message has the allowed values and all other problems of the request.",
        'suffix: "…" has … characters; at most 64 are allowed',
    ),
    ErrorCode(
        "conflicting_parameters",
        "One parameter was given twice with different values, or two parameters exclude each other.",
        "Give it once. The message names both places.",
        "lora.alpha = 8 contradicts hyperparameters.lora_alpha = 16; give it once, or twice with one value",
    ),
    ErrorCode(
        "context_length_exceeded",
        "The prompt, or the prompt and the requested new tokens, are longer than the model's context.",
        "Shorten the conversation, or lower `max_tokens`.",
        "This model's maximum context length is … tokens. However, …",
    ),
    ErrorCode(
        "file_deleted",
        "A clone would use a file of the original job that has been deleted.",
        "Name another file in the body: `training_file`, `validation_file`.",
        "training_file: file-… of job ftjob-… was deleted; name another training_file in the body",
    ),
    ErrorCode(
        "file_too_large_to_plan",
        "Counting the tokens of the training file for a plan takes longer than five minutes.",
        "Create the job: its validation counts them without a time limit.",
        "training_file: counting its tokens takes longer than … s; create the job instead, whose validation counts "
        "them",
    ),
    ErrorCode(
        "invalid_evaluation_state",
        "An evaluation that has ended cannot be cancelled.",
        "Read it: its status is final.",
        "Evaluation fteval-… is failed; only one that has not ended can be cancelled.",
    ),
    ErrorCode(
        "invalid_endpoint_state",
        "Redelivery was requested for a disabled webhook endpoint, or for a test.",
        "Enable the endpoint first (`enabled: true`); instead of repeating a test, send another one.",
        "Endpoint wh_… is disabled; enable it first.",
    ),
    ErrorCode(
        "invalid_job_state",
        "The state of the job does not allow the operation, such as a cancel after the end or a resume while running.",
        "Read the job again. The status is 400 because the official client would send a 409 three times.",
        "Job ftjob-… is …; only a paused job can be resumed.",
    ),
    ErrorCode(
        "invalid_json",
        "The body is not JSON, not an object, nested too deeply, or has a key twice.",
        "Send one JSON object; the message has the position of the error.",
        "We could not parse the JSON body of your request: ….",
    ),
    ErrorCode(
        "invalid_multipart",
        "The upload is not multipart/form-data, or was interrupted.",
        "Send a form, as `curl -F` and the official client do; repeat an interrupted upload.",
        'Send the file as multipart/form-data with a boundary (curl -F does), not "application/json".',
    ),
    ErrorCode(
        "invalid_project_state",
        "The project is archived, or cannot be archived because it has unfinished jobs.",
        "Unarchive the project to create keys. To archive a project with its jobs, send `cancel_jobs: true`.",
        'Project "…" is archived, so its keys are not valid; unarchive it first.',
    ),
    ErrorCode(
        "invalid_type",
        'A value has the wrong JSON type: "7" is not a number, 7 is not text.',
        "Send the type in the reference.",
        'seed: must be a whole number, not "7"',
    ),
    ErrorCode(
        "invalid_upload_state",
        "The upload was completed or cancelled, so it accepts no more content.",
        "Read the upload: a completed one has its `file`. Otherwise create another upload.",
        "Upload upload_… is cancelled, so it …; only a pending upload can.",
    ),
    ErrorCode(
        "md5_mismatch",
        "The assembled parts do not have the `md5` that was sent to complete the upload.",
        "Compare the `sha256` of the parts, send the wrong part again, and complete with the new list. The upload "
        "stays pending.",
        "md5: the file's is …, not …; a part was altered, left out or misplaced",
    ),
    ErrorCode(
        "missing_required_parameter",
        "A field without a default is absent.",
        "Send it.",
        "you must provide training_file",
    ),
    ErrorCode(
        "model_refused",
        "The operator's command `tunery models add` found code or pickles in the directory, or a file is missing.",
        "Provide a directory with safetensors, config.json and a tokenizer, without code.",
        "… cannot be a base model: …",
    ),
    ErrorCode(
        "model_unavailable",
        "An export needs the base model of the job, which was removed or has other files now.",
        "Ask the operator to register the original files again. For its meaning in `job.error` see below.",
        'The files registered as "…" are not those that the adapter was trained on.',
    ),
    ErrorCode(
        "unsupported_parameter",
        "A trial answer does not support the parameter or its value, and ignores nothing silently.",
        "Leave it out, or deliver the model to an inference engine, which gets every parameter.",
        "modalities: a trial answer does not support …; deliver the model to an engine for it (docs/guides/answers.md)",
    ),
    ErrorCode(
        "unsupported_value",
        "A value of OpenAI or PEFT that this server does not support: `reinforcement`, PiSSA, ...",
        "Omit it, or use a value from the message. [What takes the place of "
        "`reinforcement`](../guides/coming-from-openai.md#what-is-not-offered-and-what-to-do-instead).",
        'method.type "reinforcement" is not offered here; allowed are …',
    ),
    ErrorCode(
        "upload_expired",
        "The upload was not completed in time; its parts were deleted.",
        "Create another upload. The operator can extend the time with `TUNERY_UPLOAD_TTL_SECONDS`.",
        "Upload upload_… has expired, so it …; create another one with POST /v1/uploads.",
    ),
    ErrorCode(
        "upload_offset_mismatch",
        "The start of `Content-Range` is not the end of the stored content.",
        "`HEAD` on the same URL returns the offset to continue from in `Upload-Offset`.",
        "Content-Range: begins at byte …, but … bytes of upload upload_… are stored; continue there, or send all of "
        "it without Content-Range.",
    ),
    ErrorCode(
        "upload_size_mismatch",
        "The parts in `part_ids` have more or fewer bytes together than the declared size of the upload.",
        "Name all parts, each once; `GET /v1/uploads/{id}/parts` lists them.",
        "The parts have … bytes together, but the upload was declared with …; name all of its parts, each once.",
    ),
    ErrorCode(
        "upload_taken_over",
        "A newer request sends the content of this upload, so the content of this request is discarded.",
        "Send the content in one request at a time. After an interruption the newest request is valid.",
        "A later request sends the content of upload upload_… now; no more content of this request is stored.",
    ),
    ErrorCode(
        "validation_too_slow",
        "Reading the file for a report took too long: the service is busy, or a line is huge.",
        "Retry later, or create the job: its validation has no time limit.",
        "The file could not be read within … s; the service is busy, or one of its lines is huge. Create the job: its "
        "validation takes the time it needs",
    ),
    ErrorCode(
        "webhook_unreachable",
        "The test of a webhook endpoint got no response: unknown host, refused connection, bad certificate, timeout.",
        "The message has the reason. Correct the receiver or the `url`, and test again.",
        "The test did not reach wh_…: …",
    ),
)
