"""The requests that the installed official client sends when each of its methods gets every parameter it has.

Also imported by the tests of the API, which run the walk with the client that is installed for development.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import openai

RESOURCES = ("files", "uploads", "fine_tuning", "models", "webhooks", "admin")  # those that the API has routes of
OPTIONS = {"extra_headers", "extra_query", "extra_body", "timeout"}
WITHOUT_A_REQUEST = {"unwrap", "verify_signature"}
VALUES: dict[str, Any] = {
    "file": b"x",
    "data": b"x",
    "bytes": 1,
    "part_size": 1,
    "limit": 1,
    "metadata": {"k": "v"},
    "effective_at": {"gt": 1, "gte": 1, "lt": 1, "lte": 1},
}


class Sent(NamedTuple):
    name: str  # of the client's method
    method: str
    path: str
    query: str


class CapturedError(Exception):
    """Raised instead of sending a request."""


def sent_requests() -> list[Sent]:
    """One request of each method, none of which leaves this process."""
    captured: list[Any] = []

    def capture(request: Any) -> None:
        captured.append(request)
        raise CapturedError

    http = openai.DefaultHttpxClient(event_hooks={"request": [capture]})
    admin = {"admin_api_key": "k"} if "admin_api_key" in inspect.signature(openai.OpenAI).parameters else {}
    found = []
    with openai.OpenAI(api_key="k", base_url="http://server/v1", http_client=http, max_retries=0, **admin) as client:
        for name, call in _methods(client):
            captured.clear()
            with warnings.catch_warnings(), suppress(CapturedError, openai.APIConnectionError):  # 1.x and 2.x wrap it
                warnings.simplefilter("ignore", DeprecationWarning)
                call(**_arguments(call))
            assert captured, f"{name} has sent nothing"
            request = captured[0]
            found.append(Sent(name, request.method, request.url.path, request.url.query.decode()))
    return found


def known_requests(document: Mapping[str, Any]) -> list[Sent]:
    """Those with a query whose route the API's OpenAPI document has."""
    return [sent for sent in sent_requests() if sent.query and _is_known(sent, document)]


def _methods(client: Any) -> Iterator[tuple[str, Any]]:
    waiting = [(name, getattr(client, name)) for name in RESOURCES if hasattr(client, name)]
    while waiting:
        path, resource = waiting.pop()
        for name in dir(type(resource)):
            if name.startswith(("_", "with_")) or name in WITHOUT_A_REQUEST:
                continue
            member = getattr(resource, name)
            if inspect.ismethod(member):
                if "extra_query" in inspect.signature(member).parameters:
                    yield f"{path}.{name}", member
            elif type(member).__module__.startswith("openai.resources"):
                waiting.append((f"{path}.{name}", member))


def _arguments(call: Any) -> dict[str, Any]:
    parameters = inspect.signature(call).parameters
    return {name: _value(name, str(one.annotation)) for name, one in parameters.items() if name not in OPTIONS}


def _value(name: str, annotation: str) -> Any:
    if name in VALUES:
        return VALUES[name]
    return ["x"] if "List[" in annotation or "Sequence" in annotation else "x"


def _is_known(sent: Sent, document: Mapping[str, Any]) -> bool:
    return any(
        sent.method.lower() in item and re.fullmatch(re.sub(r"{[^}]+}", "[^/]+", template), sent.path)
        for template, item in document["paths"].items()
    )
