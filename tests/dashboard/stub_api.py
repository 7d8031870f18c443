"""A client of the public API whose responses a test makes."""

from __future__ import annotations

from collections.abc import Callable

import httpx2

from app.web.api_client import ApiClient

Answer = Callable[[httpx2.Request], httpx2.Response]


def stub_http(answer: Answer) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url="http://api/v1/", transport=httpx2.MockTransport(answer))


def stub_client(answer: Answer) -> ApiClient:
    return ApiClient(stub_http(answer), "key", lambda: None)
