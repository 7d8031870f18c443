"""Every error in one shape, `{"error": {message, type, param, code}}`, and never {"detail": ...}."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from app.api.not_found_hints import advice_for
from app.domain.artifacts.full_disk import is_disk_full
from app.domain.error_text.json_text import MAX_PATH, printable, unquoted
from app.domain.error_text.validation_text import sentence
from app.errors import (
    BadRequest,
    IdempotencyKeyInUse,
    InvalidApiKey,
    QuotaExceeded,
    RangeNotSatisfiable,
    RateLimited,
    RequestTimeout,
    StorageFull,
    TuneryError,
    Unavailable,
    UnknownParameter,
    all_at_once,
)
from app.log import get_logger

MAX_PROBLEMS = 200
MAX_MESSAGE = 4_000  # characters; what is wrong with a huge request is said in its first problems
NOT_A_NAME = ("body", "query", "path", "header", "[key]")  # what pydantic's locations hold beside names
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

log = get_logger(__name__)


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(TuneryError, _tunery_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(DBAPIError, _database_error)
    app.add_exception_handler(PoolTimeout, _database_error)
    app.add_exception_handler(OSError, _os_error)


def error_response(error: TuneryError, headers: Mapping[str, str] | None = None) -> Response:
    return _response(
        error.status,
        _shorten(error.message),
        error.type,
        None if error.param is None else unquoted(error.param, MAX_PATH),
        error.code,
        _headers(error) | dict(headers or {}),
    )


def as_problems(errors: Sequence[Mapping[str, Any]], model: type[BaseModel] | None = None) -> list[BadRequest]:
    """pydantic's findings in our words; an unknown parameter is told of those that `model` has in its place.

    At most as many as the message of an answer could hold: a body of a megabyte may have 100,000.
    """
    return [_as_problem(error, model) for error in errors[:MAX_PROBLEMS]]


def _response(
    status: int, message: str, kind: str, param: str | None, code: str | None, headers: Mapping[str, str]
) -> Response:
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Response(json.dumps(body), status, dict(headers), media_type="application/json")


def _headers(error: TuneryError) -> dict[str, str]:
    if isinstance(error, Unavailable | IdempotencyKeyInUse):
        return {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, RateLimited):
        milliseconds = math.ceil(error.retry_after_seconds * 1000)
        return {"Retry-After": str(math.ceil(milliseconds / 1000)), "Retry-After-Ms": str(milliseconds)}
    if isinstance(error, RequestTimeout):
        return {"Connection": "close"}  # RFC 9110, 15.5.9: the rest of the body is not waited for
    if isinstance(error, QuotaExceeded):
        return {"Retry-After": str(error.retry_after_seconds), "X-Should-Retry": "false"}
    if isinstance(error, StorageFull):  # the official client would send a large file three times
        return {"X-Should-Retry": "false"}
    if isinstance(error, InvalidApiKey):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, RangeNotSatisfiable):
        return {"Content-Range": f"bytes */{error.size_bytes}"}
    return {}


def _tunery_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, TuneryError)
    if error.status >= 500:
        reason = getattr(error.__cause__, "orig", error.__cause__) or error
        log.error("request failed", status=error.status, reason=str(reason))
    return error_response(error)


def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(all_at_once(as_problems(error.errors())))


def _http_exception(request: Request, error: Exception) -> Response:
    """What the router itself answers."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path}"
    message, code, headers = str(error.detail), None, dict(error.headers or {})
    if error.status_code == 404:
        text = f"Unknown request URL: {asked}. {advice_for(request)} /docs lists what there is."
        message, code = text, "unknown_url"
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods_of(request))
        message, code = f"Not allowed: {asked}. This URL takes {headers['Allow']}.", "method_not_allowed"
    return _response(error.status_code, _shorten(message), "invalid_request_error", None, code, headers)


def _methods_of(request: Request) -> list[str]:
    """Of every route under this URL; the framework names those of the first one only."""
    routes = request.app.router.routes
    return [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in routes)
    ]


def _database_error(request: Request, error: Exception) -> Response:
    """A database that is away is a 503; anything else that it says is a fault of ours."""
    if isinstance(error, DBAPIError):
        if isinstance(error.orig, psycopg.errors.DiskFull):
            return _tunery_error(
                request, _caused(StorageFull("The database's disk is full; nothing was changed."), error)
            )
        if not isinstance(error, OperationalError) and not error.connection_invalidated:
            raise error
    return _tunery_error(
        request, _caused(Unavailable("PostgreSQL does not answer; try again in a few seconds."), error)
    )


def _os_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if not is_disk_full(error):
        raise error
    text = (
        "The disk is full; nothing was stored. Delete files that are no longer needed, or ask the operator for space."
    )
    return _tunery_error(request, _caused(StorageFull(text), error))


def _caused(error: TuneryError, cause: Exception) -> TuneryError:
    error.__cause__ = cause
    return error


def _as_problem(error: Mapping[str, Any], model: type[BaseModel] | None) -> BadRequest:
    location, whose = list(error["loc"]), ""
    if location[-1:] == ["[key]"]:  # pydantic has the key itself before that; here the object is at fault
        location, whose = location[:-2], "the key "
    path = ".".join(unquoted(str(part)) for part in location if part not in NOT_A_NAME)
    kind = str(error["type"])
    if kind == "extra_forbidden":
        known = ", ".join(sorted(_names_at(model, error["loc"][:-1])))
        return UnknownParameter(f"unknown parameter {path}; known here: {known}", path)
    if kind == "missing":
        return BadRequest(f"you must provide {path}", path, "missing_required_parameter")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return BadRequest(f"{path}: {whose}{sentence(error)}", path, code)


def _names_at(model: type[BaseModel] | None, location: Sequence[int | str]) -> list[str]:
    """Of the parameters in the object at `location` of a body of `model`."""
    if model is None:
        return []
    if not location:
        return [field.alias or name for name, field in model.model_fields.items()]
    annotation = model.model_fields[str(location[0])].annotation
    inner = next(
        one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, BaseModel)
    )
    return _names_at(inner, location[1:])


def _shorten(message: str) -> str:
    message = printable(message)
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}…"
