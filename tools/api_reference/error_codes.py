"""Every code of an answer, with its cause, its remedy and a message; docs/errors.md is made of it.

Tests hold the list against the code: that no code is missing or too many, that each answers with this status and such
a message.
"""

from __future__ import annotations

from tools.api_reference.bad_requests import BAD_REQUESTS
from tools.api_reference.error_code import ErrorCode

ERROR_CODES = (
    *BAD_REQUESTS,
    ErrorCode(
        "invalid_api_key", 401,
        "No key, a wrong one, or a revoked one.",
        "`Authorization: Bearer <key>`; an operator makes keys with `tunery keys create`.",
        "Incorrect API key provided: this server does not know it. Create a key with `tunery keys create`.",
    ),
    ErrorCode(
        "insufficient_permissions", 403,
        "The key is good, but lacks the scope that this call takes.",
        "The message names the scope; an admin can give it to the key, or make another one.",
        'Permission denied: POST /v1/fine_tuning/jobs requires the scope "…"; this API key has …. An admin can give it '
        "another scope.",
    ),
    ErrorCode(
        "permission_denied", 403,
        "The key is good, but this takes another: base models belong to the operator, sharing takes an admin key.",
        "Ask the operator.",
        '"tiny" is a base model; only the operator can remove it (`tunery models remove tiny`).',
    ),
    ErrorCode(
        "adapter_deleted", 404,
        "The job succeeded, but a file of its adapter was deleted since.",
        "Train again, or take the adapter of another checkpoint, if its files are still there.",
        "File … of the adapter of job … was deleted.",
    ),
    ErrorCode(
        "adapter_not_found", 404,
        "The job has no adapter (yet).",
        "Wait for `succeeded`. The checkpoints of a job that failed or was cancelled have adapters of their own.",
        "Job … is …, so there is no adapter: it is there when the job has succeeded.",
    ),
    ErrorCode(
        "model_not_found", 404,
        "No base model and no `ft:` model of the project has this name.",
        "GET /v1/models lists them. OpenAI's names do not exist here, until an operator offers one under such a name.",
        'The model "gpt-4o" does not exist. Models on offer: ….',
    ),
    ErrorCode(
        "not_found", 404,
        "There is no such file, job or other thing, it was deleted, or it belongs to another project.",
        "Check the id, and that the key is one of its project.",
        "No such File object: file-nothere",
    ),
    ErrorCode(
        "unknown_url", 404,
        "The path does not exist. Often `base_url` lacks its `/v1`, or there is a slash at the end.",
        "Compare with [the reference](reference/README.md).",
        "Unknown request URL: GET /files. Did you mean /v1/files? /docs lists all URLs.",
    ),
    ErrorCode(
        "method_not_allowed", 405,
        "The path exists, but not with this HTTP method.",
        "The message and the `Allow` header have the right one.",
        "Method not allowed: PUT /v1/files. This URL accepts ….",
    ),
    ErrorCode(
        "request_timeout", 408,
        "The client sent its request too slowly: no byte of the body for `TUNERY_BODY_IDLE_SECONDS` (30), less than "
        "`TUNERY_BODY_MIN_BYTES_PER_SECOND` (1,000) on average over a minute, or headers that were not complete after "
        "`TUNERY_HEADER_TIMEOUT_SECONDS` (10). The connection is closed after the answer.",
        "Send it again. A stream to `/v1/uploads/{id}/content` goes on from `Upload-Offset`.",
        "No byte of the request body arrived for … s. Send the request again; a resumable upload continues at its "
        "Upload-Offset.",
    ),
    ErrorCode(
        "idempotency_key_in_use", 409,
        "The first request with this `Idempotency-Key` is still at work.",
        "Send it again after `Retry-After`; then it is answered as the first one was. The official client does.",
        'Idempotency-Key: the first request with "…" has not ended yet; send it again in a second',
    ),
    ErrorCode(
        "file_too_large", 413,
        "The file is larger than `TUNERY_MAX_FILE_BYTES`, or a part of an upload than 64 MiB. An upload that is "
        "declared with more than `TUNERY_MAX_UPLOAD_BYTES` is a 400 with this code.",
        "Send a larger file in parts, and more of them. Else split the data, or ask the operator for more.",
        "The file is larger than … bytes, the limit for one file; nothing was stored. A larger one goes up in parts: "
        "POST /v1/uploads.",
    ),
    ErrorCode(
        "request_too_large", 413,
        "A JSON body of more than 1 MiB.",
        "Data belongs into a file, not into the body.",
        "The body is longer than … bytes.",
    ),
    ErrorCode(
        "unsupported_content_encoding", 415,
        "The body is compressed: a `Content-Encoding` other than `identity`.",
        "Send it as it is; what is stored and hashed is what you send, and nothing is ever decompressed.",
        "Content-Encoding: \"gzip\" is not supported, only identity; send the body without compression",
    ),
    ErrorCode(
        "range_not_satisfiable", 416,
        "A `Range` of bytes that begins behind the end of the file, or that is none at all (`bytes=9-1`). Several "
        "ranges in one request, and units other than bytes, are answered with the whole file and a 200.",
        "The `Content-Range` header has the size. At the end of a resumed download it means: complete.",
        "Range: bytes=999999- selects nothing: the object has … bytes",
    ),
    ErrorCode(
        "rate_limit_exceeded", 429,
        "The project sends more requests a second than it may.",
        "Wait as long as `Retry-After` says; the official client does. The `x-ratelimit-...` headers tell how "
        "much is left.",
        "Rate limit reached: this project may send … requests a second. Try again in … s.",
    ),
    ErrorCode(
        "insufficient_quota", 429,
        "A limit of the project is reached; `param` names it: stored bytes, waiting jobs, GPU-seconds of the month.",
        "`GET /v1/project` has the limits and what is used. Delete files, wait for jobs, or ask an admin for more.",
        'Queue limit reached: project "…" may have … queued jobs and has …. Try again when one of them runs, cancel '
        "one, or ask an admin for a higher max_queued_jobs.",
        is_final=True,
    ),
    ErrorCode(
        "server_error", 500,
        "A fault of ours.",
        "Give the operator the `x-request-id`: the log has the rest under it.",
        "Internal server error. The server log has the details under the x-request-id of this response.",
    ),
    ErrorCode(
        "service_unavailable", 503,
        "PostgreSQL does not answer, or something else that the request needs.",
        "Wait as long as `Retry-After` says; the official client does. Nothing was changed.",
        "PostgreSQL does not answer; try again in a few seconds.",
    ),
    ErrorCode(
        "no_api_key", 503,
        "The service has no API key yet, so it answers its own machine only.",
        "Its operator makes the first one: `tunery keys create`, or `TUNERY_ADMIN_KEY_FILE`.",
        "No API key exists yet, so this service accepts connections from its own machine only, not at …. Create a key "
        "first (`tunery keys create …`), or set TUNERY_ADMIN_KEY_FILE.",
    ),
    ErrorCode(
        "storage_full", 507,
        "The disk is full. Nothing half-written is visible.",
        "Delete files that are no longer needed, or ask the operator for space.",
        "The disk is full; nothing was stored. Delete files that are no longer needed, or ask the operator for space.",
        is_final=True,
    ),
)  # fmt: skip
