"""The table of the official client's calls, against the client itself."""

from __future__ import annotations

import inspect
import operator
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
from openai import OpenAI

from app.api.openapi.openai_sdk_calls import CALLS, SdkCall
from app.api.openapi.request_examples import PARAMETER
from tools.api_reference.__main__ import document

VALUES: dict[str, Any] = {
    "file": b"x", "data": b"x", "bytes": 1, "seed": 1, "metadata": {}, "method": {}, "hyperparameters": {},
    "integrations": [], "part_ids": [], "project_ids": ["p"], "expires_after": {},
    "event_types": [], "keep_old_secret_active_for_24_hours": True, "scopes": [], "expires_in_seconds": 60,
}  # fmt: skip


def sent_by(call: SdkCall) -> tuple[str, str]:
    """(method, path) of the request, with the parameters of the path as {0}, {1}."""
    sent: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(200, json={"object": "list", "data": [], "has_more": False})

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        client = OpenAI(api_key="k", admin_api_key="k", base_url="http://server/v1", http_client=http, max_retries=0)
        method = operator.attrgetter(call.method)(client)
        by_name = {name: f"p{position}" for name, position in call.by_name.items()}
        body = {name: VALUES.get(name, "x") for name in call.body}
        method(*(f"p{position}" for position in call.arguments), **by_name, **body)
    return sent[0].method, unquote(sent[0].url.path)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_sends_the_request_it_stands_for(name: str) -> None:
    method, path = name.split(" ", 1)
    filled = path.replace("{}", "p0", 1).replace("{}", "p1", 1)
    assert sent_by(CALLS[name]) == (method, filled)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_knows_every_field_that_the_method_has_a_name_for(name: str) -> None:
    with OpenAI(api_key="k") as client:
        parameters = inspect.signature(operator.attrgetter(CALLS[name].method)(client)).parameters
    assert set(CALLS[name].body) <= parameters.keys()
    if CALLS[name].body:
        beside = {"extra_headers", "extra_query", "extra_body", "timeout"} | set(CALLS[name].by_name)
        named = {key for key, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
        assert named - beside == set(CALLS[name].body)


def test_operations_that_the_client_has_a_method_for_are_in_the_table() -> None:
    operations = {
        f"{method.upper()} {PARAMETER.sub('{}', path)}" for path, item in document()["paths"].items() for method in item
    }
    assert len(operations & CALLS.keys()) >= 36
