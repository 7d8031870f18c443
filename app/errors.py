"""All errors that a client can receive: a class has a status, and its error codes with causes and remedies.

A wrong state is a 400, not a 409: OpenAI's clients retry 409, 429 and every 5xx twice by default. The one 409 relies on
that: a concurrent duplicate of a running request receives its response on the retry.
The classes are picklable (arguments only), as they cross process boundaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from app.bad_request_codes import BAD_REQUEST_CODES, ErrorCode


class TuneryError(Exception):
    """`codes` are the codes that an error of this class can have; the first one is the default.

    `is_final`: the response has `x-should-retry: false`, which the official client respects for every status.
    `combined` are the errors of which `combine_errors` made it.
    """

    status = 500
    type = "server_error"
    is_final = False
    combined: Sequence[TuneryError] = ()
    code = "server_error"
    codes: tuple[ErrorCode, ...] = (
        ErrorCode(
            "server_error",
            "A defect of the server.",
            "Give the operator the `x-request-id`: the server log has the details under it.",
            "Internal server error. The server log has the details under the x-request-id of this response.",
        ),
    )

    def __init_subclass__(cls) -> None:
        if "codes" in vars(cls):
            cls.code = cls.codes[0].code

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param, code)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return self.message


Problem = TypeVar("Problem", bound=TuneryError)


class BadRequest(TuneryError):
    status = 400
    type = "invalid_request_error"
    codes = BAD_REQUEST_CODES


def combine_errors(problems: Sequence[Problem]) -> Problem:
    """One error for all `problems` of a request: class, `param` and code of the first one, the messages of all."""
    first = problems[0]
    message = "; ".join(dict.fromkeys(problem.message for problem in problems))
    error = type(first)(message, first.param, first.code)
    error.combined = [single for problem in problems for single in problem.combined or [problem]]
    return error


class UnknownParameter(BadRequest):
    codes = (
        ErrorCode(
            "unknown_parameter",
            "A key of a body, a form field or a query parameter does not exist; nothing is ignored silently.",
            "Correct the spelling: `param` is the dotted path; the message suggests a name and lists the known ones.",
            'unknown parameter lora.rnak (did you mean "rank"?); known here: …',
        ),
    )


class InvalidDataset(BadRequest):
    codes = (
        ErrorCode(
            "invalid_training_file",
            "The file is a table or not strict JSON lines, or a plan found examples that a job would refuse.",
            "Convert a table; correct the listed lines, at most ten. For its meaning in `job.error` see below.",
            "Expected file to have JSONL format, where every line is a valid JSON dictionary. Line 2: …",
        ),
    )


class IdempotencyKeyReused(BadRequest):
    codes = (
        ErrorCode(
            "idempotency_key_reused",
            "The `Idempotency-Key` was sent within the last 24 hours with another body, or to another path.",
            "Use a new key for a new request.",
            'Idempotency-Key: "…" was used within the last 24 hours for …; send the same request again, or a new '
            "request with a new key",
        ),
    )


class InvalidApiKey(TuneryError):
    status = 401
    type = "invalid_request_error"
    codes = (
        ErrorCode(
            "invalid_api_key",
            "The API key is absent, unknown, expired or revoked.",
            "Send `Authorization: Bearer <key>`; an operator creates keys with `tunery keys create`.",
            "Incorrect API key provided: this server has no such key. Create a key with `tunery keys create`.",
        ),
    )


class NotPermitted(TuneryError):
    status = 403
    type = "invalid_request_error"
    codes = (
        ErrorCode(
            "permission_denied",
            "The key is valid, but the operation requires another one: base models belong to the operator, sharing "
            "requires an admin key.",
            "Ask the operator.",
            '"tiny" is a base model; only the operator can remove it (`tunery models remove tiny`).',
        ),
    )


class MissingScope(NotPermitted):
    codes = (
        ErrorCode(
            "insufficient_permissions",
            "The key is valid, but lacks the scope that this call requires.",
            "The message names the scope; an admin can add it to the key, or create another key.",
            'Permission denied: POST /v1/fine_tuning/jobs requires the scope "…"; this API key has "…". An admin can '
            "give it another scope.",
        ),
    )


class NotFound(TuneryError):
    status = 404
    type = "invalid_request_error"
    codes = (
        ErrorCode(
            "not_found",
            "The object does not exist, was deleted, or belongs to another project.",
            "Check the id, and that the key belongs to the project of the object.",
            "No such File object: file-nothere",
        ),
        ErrorCode(
            "adapter_deleted",
            "The job has succeeded, but a file of its adapter was deleted later.",
            "Train again, or use the adapter of another checkpoint if its files still exist.",
            "File … of the adapter of job … was deleted.",
        ),
        ErrorCode(
            "adapter_not_found",
            "The job has no adapter (yet).",
            "Wait for `succeeded`. The checkpoints of a failed or cancelled job have adapters of their own.",
            "Job … is …, so there is no adapter: it is there when the job has succeeded.",
        ),
        ErrorCode(
            "model_not_found",
            "No base model and no `ft:` model of the project has this name.",
            "GET /v1/models lists them. A name of OpenAI's exists if the operator sets an alias (`tunery models "
            "alias`). A fine-tune of OpenAI has to be trained again: [import its "
            "job](../guides/coming-from-openai.md#import-files-and-jobs).",
            'The model "gpt-4o" does not exist. Available models: ….',
        ),
        ErrorCode(
            "unknown_url",
            "Tunery does not have the path. Often `base_url` lacks `/v1`, the path ends with a slash, or it is one of "
            "OpenAI's that is not offered, such as `/v1/evals` or `/v1/responses`.",
            "Follow the message, or compare with [the reference](api/operations.md). [What takes the place of OpenAI's "
            "paths](../guides/coming-from-openai.md#what-is-not-offered-and-what-to-do-instead).",
            "Unknown request URL: GET /files. Did you mean /v1/files? /docs/api-explorer lists all URLs.",
        ),
    )


class MethodNotAllowed(TuneryError):
    status = 405
    type = "invalid_request_error"
    codes = (
        ErrorCode(
            "method_not_allowed",
            "The path exists, but not with this HTTP method.",
            "The message and the `Allow` header list the methods.",
            "Method not allowed: PUT /v1/files. This URL accepts ….",
        ),
    )


class RequestTimeout(TuneryError):
    status = 408
    type = "invalid_request_error"
    codes = (
        ErrorCode(
            "request_timeout",
            "The client sent its request too slowly: no byte of the body for `TUNERY_BODY_IDLE_SECONDS` (30), less "
            "than `TUNERY_BODY_MIN_BYTES_PER_SECOND` (1,000) on average over a minute. The server closes the "
            "connection after the response.",
            "Send it again. A stream to `/v1/uploads/{id}/content` continues at `Upload-Offset`.",
            "No byte of the request body arrived for … s. Send the request again; a resumable upload continues at its "
            "Upload-Offset.",
        ),
    )


class IdempotencyKeyInUse(TuneryError):
    status = 409
    type = "invalid_request_error"
    codes = (
        ErrorCode(
            "idempotency_key_in_use",
            "The first request with this `Idempotency-Key` is still running.",
            "Retry after `Retry-After` to receive the response of the first request. The official client does that.",
            'Idempotency-Key: the first request with "…" has not ended yet; send it again in a second',
        ),
    )
    retry_after_seconds = 1


class TooLarge(TuneryError):
    status = 413
    type = "invalid_request_error"
    codes = (
        ErrorCode(
            "file_too_large",
            "The file is larger than `TUNERY_MAX_FILE_BYTES`, or a part larger than 64 MiB. An upload with a declared "
            "size above `TUNERY_MAX_UPLOAD_BYTES` is a 400 with this code.",
            "Send a larger file in parts, and a larger part as several. Otherwise split the data, or ask the operator "
            "for a higher limit.",
            "The file is larger than … bytes, the limit for one file; nothing was stored. A larger one goes up in "
            "parts: POST /v1/uploads.",
        ),
        ErrorCode(
            "request_too_large",
            "A JSON body has more than 1 MiB, or a question more than TUNERY_MAX_ANSWER_BODY_BYTES (2 MiB by default).",
            "Upload data as a file instead; shorten a conversation.",
            "The body has … bytes; at most … are allowed.",
        ),
    )


class UnsupportedEncoding(TuneryError):
    status = 415
    type = "invalid_request_error"
    codes = (
        ErrorCode(
            "unsupported_content_encoding",
            "The body is compressed: a `Content-Encoding` other than `identity`.",
            "Send it without compression; bodies are stored and hashed as sent, and never decompressed.",
            'Content-Encoding: "gzip" is not supported, only identity; send the body without compression',
        ),
    )


class RangeNotSatisfiable(TuneryError):
    status = 416
    type = "invalid_request_error"
    codes = (
        ErrorCode(
            "range_not_satisfiable",
            "The `Range` begins after the end of the file, or is invalid (`bytes=9-1`). The response to several "
            "ranges in one request, and to units other than bytes, is the whole file with a 200.",
            "The `Content-Range` header has the size. At the end of a resumed download it means: complete.",
            "Range: bytes=999999- selects nothing: the object has … bytes",
        ),
    )

    def __init__(self, message: str, size_bytes: int) -> None:
        super().__init__(message)
        self.args = (message, size_bytes)
        self.size_bytes = size_bytes


class RateLimited(TuneryError):
    status = 429
    type = "requests"
    codes = (
        ErrorCode(
            "rate_limit_exceeded",
            "The project sends more requests per second than its limit.",
            "Wait for the time in `Retry-After`; the official client does. The `x-ratelimit-...` headers have the "
            "remaining requests.",
            "Rate limit reached: this project may send … a second. Try again in … s.",
        ),
    )

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.args = (message, retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class QuotaExceeded(TuneryError):
    """A limit of the project or of the key is reached; `param` names it."""

    status = 429
    type = "insufficient_quota"
    is_final = True
    codes = (
        ErrorCode(
            "insufficient_quota",
            "A limit of the project or of the key is reached; `param` names it: stored bytes, queued jobs, "
            "GPU-seconds of the month, pending uploads, unfinished evaluations, webhook endpoints, delivery targets, "
            "event streams.",
            "`GET /v1/project` has limits and usage. Delete or end something of this kind, or ask an admin for a "
            "higher limit.",
            "max_queued_jobs: the project may have … and has …, so … more do not fit; try again when one of them "
            "runs, cancel one, or ask an admin for a higher limit",
        ),
    )
    retry_after_seconds = 60  # the longest delay that all official clients respect; 1.x ignores longer ones


class EngineFailed(TuneryError):
    status = 502
    codes = (
        ErrorCode(
            "engine_failed",
            "The inference engine that serves the model failed with an error of its own, or stopped within a stream.",
            "Send the request again; if it fails again, the engine's log has the cause.",
            "The engine failed with status …: …",
        ),
    )


class Unavailable(TuneryError):
    status = 503
    type = "server_error"
    codes = (
        ErrorCode(
            "service_unavailable",
            "PostgreSQL, the bucket of files or another dependency does not answer; the message has the reason.",
            "Wait for the time in `Retry-After`; the official client does. Nothing was changed.",
            "PostgreSQL does not answer; try again in a few seconds.",
        ),
    )
    retry_after_seconds = 5


class NotBootstrapped(Unavailable):
    codes = (
        ErrorCode(
            "no_api_key",
            "No API key exists yet, so the service accepts connections from its own machine only.",
            "The operator creates the first key: `tunery keys create --database`, or `TUNERY_ADMIN_KEY_FILE`.",
            "No API key exists yet, so this service accepts connections from its own machine only, not at …. Create a "
            "key first (`tunery keys create --database …`), or set TUNERY_ADMIN_KEY_FILE.",
        ),
    )


class EngineUnavailable(Unavailable):
    codes = (
        ErrorCode(
            "engine_unavailable",
            "No inference engine that serves the model can be asked: it does not respond, has lost the model, refuses "
            "the key of its delivery target, or sends what is no answer or more than 8 MiB. The message has the "
            "reasons.",
            "Wait for the time in `Retry-After`. If it stays so, start the engine or correct its delivery target.",
            'No engine that serves "…" can be asked: 1 server was tried (…). Try again in a few seconds; if it stays '
            "so, start the engine, or correct its delivery target (`tunery targets list`).",
        ),
    )


class ModelNotServed(TuneryError):
    status = 503
    is_final = True
    codes = (
        ErrorCode(
            "model_not_served",
            "The model exists, but nothing serves it: it was not delivered to an inference engine, and no worker "
            "answers on trial.",
            "Create a delivery target of kind `vllm` or `sglang`, and deliver the model to it.",
            'Nothing serves "…": it was not delivered to an inference engine. Create a delivery target of kind vllm '
            "or sglang (`tunery targets create`), and deliver the model to it (`tunery jobs deliver JOB --to TARGET`).",
        ),
    )


class StorageFull(TuneryError):
    status = 507
    type = "server_error"
    is_final = True
    codes = (
        ErrorCode(
            "storage_full",
            "The disk or the bucket of files is full. No partial data is visible.",
            "Delete files that are no longer needed, or ask the operator for space.",
            "The disk is full; nothing was stored. Delete files that are no longer needed, or ask the operator for "
            "space.",
        ),
    )
