"""JSON bodies: read with a limit after the key was checked, parsed as strictly as data sets are."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

from fastapi import Depends, Request

from app.api.auth import CallerDep
from app.api.dependencies import engines_of
from app.api.transport.upload_io import refuse_compressed
from app.domain.datasets.jsonl import MAX_DEPTH, LineError, check_text, decode_json, json_type, needs_walk
from app.errors import BadRequest, TooLarge, UnknownParameter

MAX_BODY_BYTES = 1 << 20
MAX_NAMED, MAX_NAME_CHARS = 10, 60  # unknown names in one message, and how much of each
MAX_PART_OF_PATH = 60  # characters of a key in a message


async def read_body(request: Request, _caller: CallerDep) -> bytes:
    """The caller comes first in the signature, so that nobody's body is read without a good key."""
    return await _read_limited(request)


BodyBytesDep = Annotated[bytes, Depends(read_body)]


async def read_json_object(request: Request, body: BodyBytesDep, caller: CallerDep) -> dict[str, Any]:
    return await engines_of(request).lanes.parse(caller.key_id, parse_json_object, body)


JsonBodyDep = Annotated[dict[str, Any], Depends(read_json_object)]


async def read_optional_json_object(request: Request, body: BodyBytesDep, caller: CallerDep) -> dict[str, Any]:
    """For calls that need no body: none at all is an empty object."""
    return await read_json_object(request, body, caller) if body else {}


OptionalJsonBodyDep = Annotated[dict[str, Any], Depends(read_optional_json_object)]


async def refuse_parameters(request: Request, body: BodyBytesDep, caller: CallerDep) -> None:
    """For calls without a body: whatever names no parameter is ignored, as some clients send `{}` with every POST."""
    if names := await engines_of(request).lanes.parse(caller.key_id, _first_names, body):
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
    if needs_walk(data):
        _check_texts(value, [])
    return value


def _first_names(data: bytes) -> list[str]:
    """The first keys of a JSON object, as they may stand in a message; none of anything else."""
    try:
        value = decode_json(data)
    except (LineError, RecursionError):
        return []
    return [name[:MAX_NAME_CHARS] for name in islice(value, MAX_NAMED)] if isinstance(value, dict) else []


async def _read_limited(request: Request) -> bytes:
    refuse_compressed(request.headers)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge(f"The body is longer than {MAX_BODY_BYTES:,} bytes.", code="request_too_large")
    return bytes(body)


def _check_texts(value: Any, where: list[str | int]) -> None:
    """Check every string of a parsed body, keys included. `where` is the path to `value`, changed on the way.

    A path is written out for a refusal only: a key may have a megabyte, and a list below it as many items.
    """
    if len(where) >= MAX_DEPTH:
        raise BadRequest(f"The JSON body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            where.append(index)
            _check_texts(item, where)
            where.pop()
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, where)
            where.append(key)
            _check_texts(item, where)
            where.pop()


def _check_text(text: str, where: list[str | int]) -> None:
    try:
        check_text(text)
    except LineError as error:
        path = ".".join(str(part)[:MAX_PART_OF_PATH] for part in where)
        raise BadRequest(f"{path or 'body'}: {error}", path or "body") from error
