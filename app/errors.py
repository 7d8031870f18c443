"""The tree of all errors that a client can receive.

    TuneryError                     500 server_error
    +- BadRequest                   400 invalid_request_error: the client must change something
    |  +- UnknownParameter          400 unknown_parameter
    |  +- InvalidDataset            400 invalid_training_file, carries the findings
    |  +- IdempotencyKeyReused      400 idempotency_key_reused
    +- InvalidApiKey                401 invalid_api_key
    +- NotPermitted                 403 permission_denied
    |  +- MissingScope              403 insufficient_permissions, names the scope
    +- NotFound                     404 not_found
    +- RequestTimeout               408 request_timeout: the client stopped sending
    +- IdempotencyKeyInUse          409 idempotency_key_in_use, with Retry-After
    +- TooLarge                     413 file_too_large
    +- UnsupportedEncoding          415 unsupported_content_encoding: a compressed body
    +- RangeNotSatisfiable          416 range_not_satisfiable
    +- RateLimited                  429 rate_limit_exceeded, with Retry-After
    +- QuotaExceeded                429 insufficient_quota: waiting seconds does not help, so clients must not retry
    +- EngineFailed                 502 engine_failed: an inference engine failed
    +- Unavailable                  503 service_unavailable, with Retry-After
    |  +- NotBootstrapped           503 no_api_key: loopback only until an API key exists
    |  +- EngineUnavailable         503 engine_unavailable: no engine that serves the model responds
    +- ModelNotServed               503 model_not_served: nothing serves the model; clients must not retry
    +- StorageFull                  507 storage_full

A wrong state is a 400, not a 409: OpenAI's clients retry 409, 429 and every 5xx twice by default. The one 409 relies on
that: a concurrent duplicate of a running request receives its response on the retry.
The classes are picklable (arguments only), as they cross process boundaries.
"""

from __future__ import annotations

from collections.abc import Sequence


class TuneryError(Exception):
    status = 500
    type = "server_error"
    code: str | None = "server_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param, code)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return self.message


class BadRequest(TuneryError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


def combine_errors(problems: Sequence[BadRequest]) -> BadRequest:
    """One error for all `problems` of a request: class, `param` and code of the first one, the messages of all."""
    first = problems[0]
    message = "; ".join(dict.fromkeys(problem.message for problem in problems))
    return type(first)(message, first.param, first.code)


class UnknownParameter(BadRequest):
    code = "unknown_parameter"


class InvalidDataset(BadRequest):
    code = "invalid_training_file"


class IdempotencyKeyReused(BadRequest):
    code = "idempotency_key_reused"


class InvalidApiKey(TuneryError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotPermitted(TuneryError):
    status = 403
    type = "invalid_request_error"
    code = "permission_denied"


class MissingScope(NotPermitted):
    code = "insufficient_permissions"


class NotFound(TuneryError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class RequestTimeout(TuneryError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class IdempotencyKeyInUse(TuneryError):
    status = 409
    type = "invalid_request_error"
    code = "idempotency_key_in_use"
    retry_after_seconds = 1


class TooLarge(TuneryError):
    status = 413
    type = "invalid_request_error"
    code = "file_too_large"


class UnsupportedEncoding(TuneryError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"


class RangeNotSatisfiable(TuneryError):
    status = 416
    type = "invalid_request_error"
    code = "range_not_satisfiable"

    def __init__(self, message: str, size_bytes: int) -> None:
        super().__init__(message)
        self.args = (message, size_bytes)
        self.size_bytes = size_bytes


class RateLimited(TuneryError):
    status = 429
    type = "requests"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.args = (message, retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class QuotaExceeded(TuneryError):
    """A limit of the project or of the key is reached; `param` names it."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"
    retry_after_seconds = 60  # the longest delay that all official clients respect; 1.x ignores longer ones


class EngineFailed(TuneryError):
    status = 502
    code = "engine_failed"


class Unavailable(TuneryError):
    status = 503
    type = "server_error"
    code = "service_unavailable"
    retry_after_seconds = 5


class NotBootstrapped(Unavailable):
    code = "no_api_key"


class EngineUnavailable(Unavailable):
    code = "engine_unavailable"


class ModelNotServed(TuneryError):
    status = 503
    code = "model_not_served"


class StorageFull(TuneryError):
    status = 507
    type = "server_error"
    code = "storage_full"
