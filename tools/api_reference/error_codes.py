"""The error codes of responses, with cause, remedy and an example message; the source of docs/errors.md.

Tests compare the list with the code: every code is listed, and each is returned with this status and such a message.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorCode:
    """One error code. `message` is an example; `…` stands for the variable parts.

    `is_final`: the response has `x-should-retry: false`, which the official client respects for every status.
    """

    code: str
    status: int
    cause: str
    remedy: str
    message: str
    is_final: bool = False


ERROR_CODES = (
    ErrorCode(
        "conflicting_parameters",
        400,
        "One parameter was given twice with different values, or two parameters exclude each other.",
        "Give it once. The message names both places.",
        "lora.alpha = 8 contradicts hyperparameters.lora_alpha = 16; give it once, or twice with one value",
    ),
    ErrorCode(
        "context_length_exceeded",
        400,
        "The prompt, or the prompt and the requested new tokens, are longer than the model's context.",
        "Shorten the conversation, or lower `max_tokens`.",
        "This model's maximum context length is … tokens. However, …",
    ),
    ErrorCode(
        "file_deleted",
        400,
        "A clone would use a file of the original job that has been deleted.",
        "Name another file in the body: `training_file`, `validation_file`.",
        "training_file: file-… of job ftjob-… was deleted; name another training_file in the body",
    ),
    ErrorCode(
        "file_too_large_to_plan",
        400,
        "Counting the tokens of the training file for a plan takes longer than five minutes.",
        "Create the job: its validation counts them without a time limit.",
        "training_file: counting its tokens takes longer than … s; create the job instead, "
        "whose validation counts them",
    ),
    ErrorCode(
        "idempotency_key_reused",
        400,
        "The `Idempotency-Key` was sent within the last 24 hours with another body, or to another path.",
        "Use a new key for a new request.",
        'Idempotency-Key: "…" was used within the last 24 hours for …; send the same request again, or a new '
        "request with a new key",
    ),
    ErrorCode(
        "invalid_evaluation_state",
        400,
        "An evaluation that has ended cannot be cancelled.",
        "Read it: its status is final.",
        "Evaluation fteval-… is failed; only one that has not ended can be cancelled.",
    ),
    ErrorCode(
        "invalid_endpoint_state",
        400,
        "Redelivery was requested for a disabled webhook endpoint, or for a test.",
        "Enable the endpoint first (`enabled: true`); instead of repeating a test, send another one.",
        "Endpoint wh_… is disabled; enable it first.",
    ),
    ErrorCode(
        "invalid_job_state",
        400,
        "The state of the job does not allow the operation, such as a cancel after the end or a resume while running.",
        "Read the job again. The status is 400 because the official client would send a 409 three times.",
        "Job ftjob-… is …; only a paused job can be resumed.",
    ),
    ErrorCode(
        "invalid_json",
        400,
        "The body is not JSON, not an object, nested too deeply, or has a key twice.",
        "Send one JSON object; the message has the position of the error.",
        "We could not parse the JSON body of your request: ….",
    ),
    ErrorCode(
        "invalid_multipart",
        400,
        "The upload is not multipart/form-data, or was interrupted.",
        "Send a form, as `curl -F` and the official client do; repeat an interrupted upload.",
        'Send the file as multipart/form-data with a boundary (curl -F does), not "application/json".',
    ),
    ErrorCode(
        "invalid_project_state",
        400,
        "The project is archived, or cannot be archived because it has unfinished jobs.",
        "Unarchive the project to create keys. To archive a project with its jobs, send `cancel_jobs: true`.",
        'Project "…" is archived, so its keys are not valid; unarchive it first.',
    ),
    ErrorCode(
        "invalid_training_file",
        400,
        "The file is a table or not strict JSON lines, or a plan found examples that a job would refuse.",
        "Convert a table; correct the listed lines, at most ten. For its meaning in `job.error` see below.",
        "Expected file to have JSONL format, where every line is a valid JSON dictionary. Line 2: …",
    ),
    ErrorCode(
        "invalid_type",
        400,
        'A value has the wrong JSON type: "7" is not a number, 7 is not text.',
        "Send the type in the reference.",
        'seed: must be a whole number, not "7"',
    ),
    ErrorCode(
        "invalid_upload_state",
        400,
        "The upload was completed or cancelled, so it accepts no more content.",
        "Read the upload: a completed one has its `file`. Otherwise create another upload.",
        "Upload upload_… is cancelled, so it …; only a pending upload can.",
    ),
    ErrorCode(
        "invalid_value",
        400,
        "A value is out of its bounds, or contradicts the rest of the request.",
        "Change the field in `param`; the message has the allowed values and all other problems of the request.",
        'suffix: "…" has … characters; at most 64 are allowed',
    ),
    ErrorCode(
        "md5_mismatch",
        400,
        "The assembled parts do not have the `md5` that was sent to complete the upload.",
        "Compare the `sha256` of the parts, send the wrong part again, and complete with the new list. The upload "
        "stays pending.",
        "md5: the file's is …, not …; a part was altered, left out or misplaced",
    ),
    ErrorCode(
        "missing_required_parameter",
        400,
        "A field without a default is absent.",
        "Send it.",
        "you must provide training_file",
    ),
    ErrorCode(
        "model_refused",
        400,
        "The operator's command `tunery models add` found code or pickles in the directory, or a file is missing.",
        "Provide a directory with safetensors, config.json and a tokenizer, without code.",
        "… cannot be a base model: …",
    ),
    ErrorCode(
        "model_unavailable",
        400,
        "An export needs the base model of the job, which was removed or has other files now.",
        "Ask the operator to register the original files again. For its meaning in `job.error` see below.",
        'The files registered as "…" are not those that the adapter was trained on.',
    ),
    ErrorCode(
        "unknown_parameter",
        400,
        "A key of a body, a form field or a query parameter does not exist; nothing is ignored silently.",
        "Correct the spelling: `param` is the dotted path; the message suggests a name and lists the known ones.",
        'unknown parameter lora.rnak (did you mean "rank"?); known here: …',
    ),
    ErrorCode(
        "unsupported_parameter",
        400,
        "A trial answer does not support the parameter or its value, and ignores nothing silently.",
        "Leave it out, or deliver the model to an inference engine, which gets every parameter.",
        "modalities: a trial answer does not support …; deliver the model to an engine for it (docs/answers.md)",
    ),
    ErrorCode(
        "unsupported_value",
        400,
        "A value of OpenAI or PEFT that this server does not support: `reinforcement`, `integrations`, PiSSA, ...",
        "Omit it, or use a value from the message.",
        'method.type "reinforcement" is not offered here; allowed are "supervised" and "dpo"',
    ),
    ErrorCode(
        "upload_expired",
        400,
        "The upload was not completed in time; its parts were deleted.",
        "Create another upload. The operator can extend the time with `TUNERY_UPLOAD_TTL_SECONDS`.",
        "Upload upload_… has expired, so it …; create another one with POST /v1/uploads.",
    ),
    ErrorCode(
        "upload_offset_mismatch",
        400,
        "The start of `Content-Range` is not the end of the stored content.",
        "`HEAD` on the same URL returns the offset to continue from in `Upload-Offset`.",
        "Content-Range: begins at byte …, but … bytes of upload upload_… are stored; continue there, or send "
        "all of it without Content-Range.",
    ),
    ErrorCode(
        "upload_size_mismatch",
        400,
        "The parts in `part_ids` have more or fewer bytes together than the declared size of the upload.",
        "Name all parts, each once; `GET /v1/uploads/{id}/parts` lists them.",
        "The parts have … bytes together, but the upload was declared with …; name all of its parts, each once.",
    ),
    ErrorCode(
        "upload_taken_over",
        400,
        "A newer request sends the content of this upload, so the content of this request is discarded.",
        "Send the content in one request at a time. After an interruption the newest request is valid.",
        "A later request sends the content of upload upload_… now; no more content of this request is stored.",
    ),
    ErrorCode(
        "validation_too_slow",
        400,
        "Reading the file for a report took too long: the service is busy, or a line is huge.",
        "Retry later, or create the job: its validation has no time limit.",
        "The file could not be read within … s; the service is busy, or one of its lines is huge. Create the "
        "job: its validation takes the time it needs",
    ),
    ErrorCode(
        "webhook_unreachable",
        400,
        "The test of a webhook endpoint got no response: unknown host, refused connection, bad certificate, timeout.",
        "The message has the reason. Correct the receiver or the `url`, and test again.",
        "The test did not reach wh_…: …",
    ),
    ErrorCode(
        "invalid_api_key",
        401,
        "The API key is absent, unknown, expired or revoked.",
        "Send `Authorization: Bearer <key>`; an operator creates keys with `tunery keys create`.",
        "Incorrect API key provided: this server has no such key. Create a key with `tunery keys create`.",
    ),
    ErrorCode(
        "insufficient_permissions",
        403,
        "The key is valid, but lacks the scope that this call requires.",
        "The message names the scope; an admin can add it to the key, or create another key.",
        'Permission denied: POST /v1/fine_tuning/jobs requires the scope "…"; this API key has …. An admin can give it '
        "another scope.",
    ),
    ErrorCode(
        "permission_denied",
        403,
        "The key is valid, but the operation requires another one: base models belong to the operator, sharing "
        "requires an admin key.",
        "Ask the operator.",
        '"tiny" is a base model; only the operator can remove it (`tunery models remove tiny`).',
    ),
    ErrorCode(
        "adapter_deleted",
        404,
        "The job has succeeded, but a file of its adapter was deleted later.",
        "Train again, or use the adapter of another checkpoint if its files still exist.",
        "File … of the adapter of job … was deleted.",
    ),
    ErrorCode(
        "adapter_not_found",
        404,
        "The job has no adapter (yet).",
        "Wait for `succeeded`. The checkpoints of a failed or cancelled job have adapters of their own.",
        "Job … is …, so there is no adapter: it is there when the job has succeeded.",
    ),
    ErrorCode(
        "model_not_found",
        404,
        "No base model and no `ft:` model of the project has this name.",
        "GET /v1/models lists them. A name of OpenAI's exists if the operator sets an alias (`tunery models alias`).",
        'The model "gpt-4o" does not exist. Available models: ….',
    ),
    ErrorCode(
        "not_found",
        404,
        "The object does not exist, was deleted, or belongs to another project.",
        "Check the id, and that the key belongs to the project of the object.",
        "No such File object: file-nothere",
    ),
    ErrorCode(
        "unknown_url",
        404,
        "Tunery does not have the path. Often `base_url` lacks `/v1`, or the path ends with a slash.",
        "Follow the message, or compare with [the reference](reference/README.md).",
        "Unknown request URL: GET /files. Did you mean /v1/files? /docs lists all URLs.",
    ),
    ErrorCode(
        "method_not_allowed",
        405,
        "The path exists, but not with this HTTP method.",
        "The message and the `Allow` header list the methods.",
        "Method not allowed: PUT /v1/files. This URL accepts ….",
    ),
    ErrorCode(
        "request_timeout",
        408,
        "The client sent its request too slowly: no byte of the body for `TUNERY_BODY_IDLE_SECONDS` (30), less than "
        "`TUNERY_BODY_MIN_BYTES_PER_SECOND` (1,000) on average over a minute, or incomplete headers after "
        "`TUNERY_HEADER_TIMEOUT_SECONDS` (10). The server closes the connection after the response.",
        "Send it again. A stream to `/v1/uploads/{id}/content` continues at `Upload-Offset`.",
        "No byte of the request body arrived for … s. Send the request again; a resumable upload continues at its "
        "Upload-Offset.",
    ),
    ErrorCode(
        "idempotency_key_in_use",
        409,
        "The first request with this `Idempotency-Key` is still running.",
        "Retry after `Retry-After` to receive the response of the first request. The official client does that.",
        'Idempotency-Key: the first request with "…" has not ended yet; send it again in a second',
    ),
    ErrorCode(
        "file_too_large",
        413,
        "The file is larger than `TUNERY_MAX_FILE_BYTES`, or a part larger than 64 MiB. An upload with a declared "
        "size above `TUNERY_MAX_UPLOAD_BYTES` is a 400 with this code.",
        "Send a larger file in parts, and a larger part as several. Otherwise split the data, or ask the operator for "
        "a higher limit.",
        "The file is larger than … bytes, the limit for one file; nothing was stored. A larger one goes up in parts: "
        "POST /v1/uploads.",
    ),
    ErrorCode(
        "request_too_large",
        413,
        "A JSON body has more than 1 MiB, or a question more than TUNERY_MAX_ANSWER_BODY_BYTES (2 MiB by default).",
        "Upload data as a file instead; shorten a conversation.",
        "The body has … bytes; at most … are allowed.",
    ),
    ErrorCode(
        "unsupported_content_encoding",
        415,
        "The body is compressed: a `Content-Encoding` other than `identity`.",
        "Send it without compression; bodies are stored and hashed as sent, and never decompressed.",
        'Content-Encoding: "gzip" is not supported, only identity; send the body without compression',
    ),
    ErrorCode(
        "range_not_satisfiable",
        416,
        "The `Range` begins after the end of the file, or is invalid (`bytes=9-1`). The response to several ranges in "
        "one request, and to units other than bytes, is the whole file with a 200.",
        "The `Content-Range` header has the size. At the end of a resumed download it means: complete.",
        "Range: bytes=999999- selects nothing: the object has … bytes",
    ),
    ErrorCode(
        "rate_limit_exceeded",
        429,
        "The project sends more requests per second than its limit.",
        "Wait for the time in `Retry-After`; the official client does. The `x-ratelimit-...` headers have the "
        "remaining requests.",
        "Rate limit reached: this project may send … a second. Try again in … s.",
    ),
    ErrorCode(
        "insufficient_quota",
        429,
        "A limit of the project or of the key is reached; `param` names it: stored bytes, queued jobs, GPU-seconds of "
        "the month, pending uploads, unfinished evaluations, webhook endpoints, delivery targets, event streams.",
        "`GET /v1/project` has limits and usage. Delete or end something of this kind, or ask an admin for a higher "
        "limit.",
        "max_queued_jobs: the project may have … and has …, so … more do not fit; try again when one of them runs, "
        "cancel one, or ask an admin for a higher limit",
        is_final=True,
    ),
    ErrorCode(
        "server_error",
        500,
        "A defect of the server.",
        "Give the operator the `x-request-id`: the server log has the details under it.",
        "Internal server error. The server log has the details under the x-request-id of this response.",
    ),
    ErrorCode(
        "engine_failed",
        502,
        "The inference engine that serves the model failed with an error of its own, or stopped within a stream.",
        "Send the request again; if it fails again, the engine's log has the cause.",
        "The engine failed with status …: …",
    ),
    ErrorCode(
        "engine_unavailable",
        503,
        "No inference engine that serves the model can be asked: it does not respond, has lost the model, refuses "
        "the key of its delivery target, or sends what is no answer or more than 8 MiB. The message has the reasons.",
        "Wait for the time in `Retry-After`. If it stays so, start the engine or correct its delivery target.",
        'No engine that serves "…" can be asked: 1 server was tried (…). Try again in a few seconds; if it stays so, '
        "start the engine, or correct its delivery target (`tunery targets list`).",
    ),
    ErrorCode(
        "model_not_served",
        503,
        "The model exists, but nothing serves it: it was not delivered to an inference engine, and no worker answers "
        "on trial.",
        "Create a delivery target of kind `vllm` or `sglang`, and deliver the model to it.",
        'Nothing serves "…": it was not delivered to an inference engine. Create a delivery target of kind vllm or '
        "sglang (`tunery targets create`), and deliver the model to it (`tunery jobs deliver JOB --to TARGET`).",
        is_final=True,
    ),
    ErrorCode(
        "service_unavailable",
        503,
        "PostgreSQL, the bucket of files or another dependency does not answer; the message has the reason.",
        "Wait for the time in `Retry-After`; the official client does. Nothing was changed.",
        "PostgreSQL does not answer; try again in a few seconds.",
    ),
    ErrorCode(
        "no_api_key",
        503,
        "No API key exists yet, so the service accepts connections from its own machine only.",
        "The operator creates the first key: `tunery keys create`, or `TUNERY_ADMIN_KEY_FILE`.",
        "No API key exists yet, so this service accepts connections from its own machine only, not at …. Create a key "
        "first (`tunery keys create …`), or set TUNERY_ADMIN_KEY_FILE.",
    ),
    ErrorCode(
        "storage_full",
        507,
        "The disk or the bucket of files is full. No partial data is visible.",
        "Delete files that are no longer needed, or ask the operator for space.",
        "The disk is full; nothing was stored. Delete files that are no longer needed, or ask the operator for space.",
        is_final=True,
    ),
)
