"""JSON bodies: read with a size limit after authentication, and parsed as strictly as datasets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Annotated, Any, TypeVar, get_type_hints

from fastapi import Depends, Request
from pydantic import BaseModel

from app.api.auth import CallerDep
from app.api.dependencies import app_state_of
from app.api.schemas.common import parse_body
from app.api.transport.request_bodies import limit_body
from app.domain.datasets.jsonl import MAX_DEPTH, LineError, check_text, decode_json, json_type, needs_tree_check
from app.errors import BadRequest, TooLarge, UnknownParameter

MAX_BODY_BYTES = 1 << 20
MAX_LISTED_NAMES, MAX_NAME_CHARS = 10, 60  # unknown names in one message
MAX_KEY_CHARS = 60  # of a key in the path of a message


async def read_body(request: Request, _caller: CallerDep) -> bytes:
    """Read the body. `_caller` makes FastAPI authenticate before the body is read. Raises TooLarge."""
    return await _read(request, MAX_BODY_BYTES)


BodyBytesDep = Annotated[bytes, Depends(read_body)]


async def read_json_object(request: Request, body: BodyBytesDep) -> dict[str, Any]:
    return await app_state_of(request).io_pools.parse(request.state.key_id, len(body), parse_json_object, body)


async def read_optional_json_object(request: Request, body: BodyBytesDep) -> dict[str, Any]:
    """The body of a call that does not require one; an absent body is an empty object."""
    return await read_json_object(request, body) if body else {}


async def read_model(request: Request, body: BodyBytesDep) -> Any:
    """The body as the model that the route names. Raises BadRequest with all problems."""
    documented = request_body(request.scope["route"].endpoint)
    assert documented is not None
    return await app_state_of(request).io_pools.parse(request.state.key_id, len(body), _parse_model, documented, body)


async def read_answer_body(request: Request, _caller: CallerDep) -> bytes:
    """The body of a request for an answer, of which the operator sets the size. Raises TooLarge."""
    max_bytes = app_state_of(request).settings.max_answer_body_bytes
    return await _read(
        request, max_bytes, "; shorten the conversation, or the operator raises TUNERY_MAX_ANSWER_BODY_BYTES"
    )


AnswerBodyDep = Annotated[bytes, Depends(read_answer_body)]


@dataclass(frozen=True)
class RequestBody:
    """The JSON body of a route, for the OpenAPI document."""

    model: type[BaseModel] = BaseModel  # of a JsonBody: its type
    is_required: bool = True


Model = TypeVar("Model", bound=BaseModel)
# `body: JsonBody[CreateUpload]`: the parsed body. The second type accepts an absent body, which is an empty object.
JsonBody = Annotated[Model, Depends(read_model), RequestBody()]
OptionalJsonBody = Annotated[Model, Depends(read_model), RequestBody(is_required=False)]
# The body as it was sent, of routes that parse it themselves: `body: Annotated[JsonBodyDep, RequestBody(CreateJob)]`.
JsonBodyDep = Annotated[dict[str, Any], Depends(read_json_object)]
OptionalJsonBodyDep = Annotated[dict[str, Any], Depends(read_optional_json_object)]


@cache
def request_body(endpoint: Callable[..., Any]) -> RequestBody | None:
    """The JSON body that the endpoint of a route takes; None if it takes none."""
    for hint in get_type_hints(endpoint, include_extras=True).values():
        for mark in getattr(hint, "__metadata__", ()):
            if isinstance(mark, RequestBody):
                return replace(mark, model=hint.__origin__) if mark.model is BaseModel else mark
    return None


async def refuse_parameters(request: Request, body: BodyBytesDep) -> None:
    """Refuse parameters in a call without a body. `{}` is accepted: some clients send it with every POST."""
    if names := await app_state_of(request).io_pools.parse(request.state.key_id, len(body), _first_names, body):
        raise UnknownParameter(f"unknown parameters {', '.join(names)}; this call takes no body", names[0])


NO_BODY = Depends(refuse_parameters)


async def _read(request: Request, max_bytes: int, advice: str = "") -> bytes:
    """Raises TooLarge."""

    def refusal() -> TooLarge:
        announced = int(request.headers.get("content-length", 0))
        seen = f"{announced:,}" if announced else f"more than {max_bytes:,}"
        text = f"The body has {seen} bytes; at most {max_bytes:,} are allowed{advice}."
        return TooLarge(text, code="request_too_large")

    return b"".join([chunk async for chunk in limit_body(request, max_bytes, refusal)])


def parse_json_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises BadRequest, with a dotted `param` if a string is invalid, without if the JSON is."""
    try:
        value = decode_json(data)
    except LineError as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise BadRequest(f"The body must be a JSON object, not a JSON {json_type(value)}.", code="invalid_json")
    if needs_tree_check(data):
        _check_texts(value, [])
    return value


def _parse_model(documented: RequestBody, data: bytes) -> BaseModel:
    return parse_body(documented.model, parse_json_object(data) if data or documented.is_required else {})


def _first_names(data: bytes) -> list[str]:
    """The first keys of a JSON object, shortened for a message; empty for any other body."""
    try:
        value = decode_json(data)
    except (LineError, RecursionError):
        return []
    return [name[:MAX_NAME_CHARS] for name in islice(value, MAX_LISTED_NAMES)] if isinstance(value, dict) else []


def _check_texts(value: Any, path: list[str | int]) -> None:
    """Check every string of a parsed body, keys included. `path` leads to `value` and is modified in place.

    The path is joined for an error only: a key may have a megabyte, and a list below it as many items.
    """
    if len(path) >= MAX_DEPTH:
        raise BadRequest(f"The JSON body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            path.append(index)
            _check_texts(item, path)
            path.pop()
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, path)
            path.append(key)
            _check_texts(item, path)
            path.pop()


def _check_text(text: str, path: list[str | int]) -> None:
    try:
        check_text(text)
    except LineError as error:
        param = ".".join(str(part)[:MAX_KEY_CHARS] for part in path) or "body"
        raise BadRequest(f"{param}: {error}", param) from error
