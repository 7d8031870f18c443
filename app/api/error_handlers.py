"""Exception handlers: every error response is `{"error": {message, type, param, code, doc_url}}`, never
`{"detail": ...}`."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from functools import cache
from itertools import chain, groupby

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.api.home_page import home_page
from app.api.not_found_hints import hint_for
from app.api.query_parameters import allowed_query
from app.domain.artifacts.full_disk import is_disk_full
from app.domain.error_text.json_text import MAX_PATH_CHARACTERS, printable, unquoted
from app.domain.error_text.validation_text import as_problems
from app.errors import (
    IdempotencyKeyInUse,
    InvalidApiKey,
    MethodNotAllowed,
    NotFound,
    QuotaExceeded,
    RangeNotSatisfiable,
    RateLimited,
    RequestTimeout,
    StorageFull,
    TuneryError,
    Unavailable,
    combine_errors,
)
from app.log import get_logger
from app.storage import StorageError

MAX_MESSAGE_CHARS = 4_000  # the first problems of a huge request are enough
# Of the disk or of what mounts it, and not of a request or of this program
FAILING_DISK = {errno.EIO, errno.EROFS, errno.ESTALE, errno.ENXIO, errno.ENODEV}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

log = get_logger(__name__)


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(TuneryError, _tunery_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(DBAPIError, _database_error)
    app.add_exception_handler(PoolTimeout, _database_error)
    app.add_exception_handler(OSError, _os_error)


def error_response(error: TuneryError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """The response to the request of `scope`."""
    return _response(
        error.status,
        _shorten(error.message),
        error.type,
        None if error.param is None else unquoted(error.param, MAX_PATH_CHARACTERS),
        error.code,
        _headers(error) | dict(headers or {}),
        scope,
    )


@cache
def codes_with_an_entry() -> frozenset[str]:
    """The codes of all classes: those that the page of errors explains."""
    classes = [TuneryError]
    for each in classes:
        classes += each.__subclasses__()
    return frozenset(entry.code for each in classes for entry in vars(each).get("codes", ()))


def _response(
    status: int, message: str, kind: str, param: str | None, code: str | None, headers: Mapping[str, str], scope: Scope
) -> Response:
    has_entry = code in codes_with_an_entry() and scope["app"].state.app_state.settings.docs_enabled
    doc_url = f"/docs/reference/errors/#{code}" if has_entry else None
    body = {"error": {"message": message, "type": kind, "param": param, "code": code, "doc_url": doc_url}}
    return Response(json.dumps(body), status, dict(headers), media_type="application/json")


def _headers(error: TuneryError) -> dict[str, str]:
    if isinstance(error, Unavailable | IdempotencyKeyInUse):
        return {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, RateLimited):
        milliseconds = math.ceil(error.retry_after_seconds * 1000)
        return {"Retry-After": str(math.ceil(milliseconds / 1000)), "Retry-After-Ms": str(milliseconds)}
    if isinstance(error, RequestTimeout):
        return {"Connection": "close"}  # RFC 9110, 15.5.9: the server does not read the rest of the body
    if isinstance(error, QuotaExceeded):
        return {"Retry-After": str(error.retry_after_seconds), "X-Should-Retry": "false"}
    if error.is_final:
        return {"X-Should-Retry": "false"}
    if isinstance(error, InvalidApiKey):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, RangeNotSatisfiable):
        return {"Content-Range": f"bytes */{error.size_bytes}"}
    return {}


def _tunery_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TuneryError)
    if error.status >= 500:
        cause = error.__cause__
        reason = getattr(cause, "orig", cause.__cause__ if isinstance(cause, StorageError) else cause) or error
        log.error("request failed", status=error.status, reason=str(reason))
    return error_response(error, request.scope)


def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    query = allowed_query(request.scope["route"]).by_name
    groups = groupby(error.errors(), lambda each: each["loc"][0] == "query")
    found = (as_problems([*errors], query if is_query else {}) for is_query, errors in groups)
    return error_response(combine_errors([*chain.from_iterable(found)]), request.scope)


def _http_exception(request: Request, error: Exception) -> Response:
    """Convert an error of the router itself: an unknown URL or method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and (page := home_page(request)) is not None:
        return page
    request_line = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        text = f"Unknown request URL: {request_line}. {hint_for(request)} /docs/api-explorer lists all URLs."
        return error_response(NotFound(text, code="unknown_url"), request.scope)
    if error.status_code == 405:
        allowed = ", ".join(_methods_of(request))
        text = f"Method not allowed: {request_line}. This URL accepts {allowed}."
        return error_response(MethodNotAllowed(text), request.scope, {"Allow": allowed})
    headers = dict(error.headers or {})
    return _response(
        error.status_code, _shorten(str(error.detail)), "invalid_request_error", None, None, headers, request.scope
    )


def _methods_of(request: Request) -> list[str]:
    """The methods of every route under this URL; Starlette lists those of the first route only."""
    routes = request.app.router.routes
    return [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in routes)
    ]


def _database_error(request: Request, error: Exception) -> Response:
    """Respond 503 when the database is unreachable and 507 when its disk is full; re-raise any other error (500)."""
    if isinstance(error, DBAPIError):
        if isinstance(error.orig, psycopg.errors.DiskFull):
            return _tunery_error(
                request, _with_cause(StorageFull("The database's disk is full; nothing was changed."), error)
            )
        if not isinstance(error, OperationalError) and not error.connection_invalidated:
            raise error
    return _tunery_error(
        request, _with_cause(Unavailable("PostgreSQL does not answer; try again in a few seconds."), error)
    )


def _os_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if isinstance(error, StorageError):
        text = f"The storage of files cannot be used: {error.strerror}. Nothing was changed; try again later."
        return _tunery_error(request, _with_cause((StorageFull if is_disk_full(error) else Unavailable)(text), error))
    if error.errno in FAILING_DISK:
        text = (
            f"The disk of the server cannot be used: {error.strerror}. Nothing was changed; try again once the "
            "operator has repaired it."
        )
        return _tunery_error(request, _with_cause(Unavailable(text), error))
    if not is_disk_full(error):
        raise error
    text = (
        "The disk is full; nothing was stored. Delete files that are no longer needed, or ask the operator for space."
    )
    return _tunery_error(request, _with_cause(StorageFull(text), error))


def _with_cause(error: TuneryError, cause: Exception) -> TuneryError:
    error.__cause__ = cause
    return error


def _shorten(message: str) -> str:
    message = printable(message)
    return message if len(message) <= MAX_MESSAGE_CHARS else f"{message[:MAX_MESSAGE_CHARS]}…"
