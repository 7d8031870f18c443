"""JSON bodies: read with a limit after the key was checked, parsed as strictly as data sets are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, Request

from app.api.auth import CallerDep
from app.api.receiving import refuse_compressed
from app.domain.jsonl import MAX_DEPTH, LineError, check_text, decode_json, json_type
from app.errors import BadRequest, TooLarge, UnknownParameter

MAX_BODY_BYTES = 1 << 20
MAX_NAMED, MAX_NAME_CHARS = 10, 60  # unknown names in one message, and how much of each


async def read_body(request: Request, _caller: CallerDep) -> bytes:
    """The caller comes first in the signature, so that nobody's body is read without a good key."""
    return await _read_limited(request)


BodyBytesDep = Annotated[bytes, Depends(read_body)]


async def read_json_object(body: BodyBytesDep) -> dict[str, Any]:
    return parse_json_object(body)


JsonBodyDep = Annotated[dict[str, Any], Depends(read_json_object)]


async def read_optional_json_object(body: BodyBytesDep) -> dict[str, Any]:
    """For calls that need no body: none at all is an empty object."""
    return parse_json_object(body) if body else {}


OptionalJsonBodyDep = Annotated[dict[str, Any], Depends(read_optional_json_object)]


async def refuse_parameters(body: BodyBytesDep) -> None:
    """For calls without a body: whatever names no parameter is ignored, as some clients send `{}` with every POST."""
    try:
        value = decode_json(body)
    except (LineError, RecursionError):
        return
    if isinstance(value, dict) and value:
        names = [name[:MAX_NAME_CHARS] for name in list(value)[:MAX_NAMED]]
        raise UnknownParameter(f"unknown parameters {', '.join(names)}; this call takes no body", names[0])


NO_BODY = Depends(refuse_parameters)


def parse_json_object(data: bytes) -> dict[str, Any]:
    """Raises BadRequest: with a dotted `param` where a string is at fault, without where the JSON itself is."""
    try:
        value = decode_json(data)
    except LineError as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise BadRequest(f"The body must be a JSON object, not a JSON {json_type(value)}.", code="invalid_json")
    for path, text in _texts(value, "", depth=1):
        try:
            check_text(text)
        except LineError as error:
            raise BadRequest(f"{path}: {error}", path) from error
    return value


async def _read_limited(request: Request) -> bytes:
    refuse_compressed(request.headers)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge(f"The body is longer than {MAX_BODY_BYTES:,} bytes.", code="request_too_large")
    return bytes(body)


def _texts(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """Every string of a parsed body, keys included, with the dotted path of where it stands."""
    if depth > MAX_DEPTH:
        raise BadRequest(f"The JSON body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}.{index}", depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield path or "body", key
            yield from _texts(item, f"{path}.{key}" if path else key, depth + 1)
