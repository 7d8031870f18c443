"""Request targets in absolute form, over a real socket: no HTTP client sends them without a proxy."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from app.api.middleware.other_clients import origin_form
from tests.serving import LiveServer


def scope_of(target: str, root_path: str = "") -> dict[str, Any]:
    """As uvicorn makes it: the whole target is the path, behind `root_path`."""
    raw_path, _, query = target.partition("?")
    return {
        "type": "http",
        "root_path": root_path,
        "path": root_path + raw_path,
        "raw_path": (root_path + raw_path).encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"other"), (b"x", b"y")],
    }


class TestOriginForm:
    @pytest.mark.parametrize(
        ("target", "path", "host"),
        [
            ("http://a.example/v1/models", "/v1/models", b"a.example"),
            ("http://a.example:8000/v1/models?limit=1", "/v1/models", b"a.example:8000"),
            ("HTTPS://a.example/v1/files/%66ile-1", "/v1/files/file-1", b"a.example"),
            ("http://user:secret@a.example/healthz", "/healthz", b"a.example"),
            ("http://[::1]:80/healthz", "/healthz", b"[::1]:80"),
            ("http://a.example", "/", b"a.example"),
            ("http://a.example?x=1", "/", b"a.example"),
            ("http://a.example//v1/models", "//v1/models", b"a.example"),
            ("http://a.example/http://b.example/x", "/http://b.example/x", b"a.example"),
        ],
    )
    def test_is_the_path_and_the_host_of_the_target(self, target: str, path: str, host: bytes) -> None:
        scope = origin_form(scope_of(target))
        assert (scope["path"], dict(scope["headers"])[b"host"]) == (path, host)
        assert scope["raw_path"].startswith(b"/")
        assert scope["query_string"] == scope_of(target)["query_string"]
        assert dict(scope["headers"])[b"x"] == b"y"

    @pytest.mark.parametrize(
        "target", ["/v1/models", "/http://a.example/v1/models", "*", "ftp://a.example/", "//a/b", ""]
    )
    def test_leaves_every_other_target_alone(self, target: str) -> None:
        scope = scope_of(target)
        assert origin_form(scope) is scope

    def test_keeps_the_root_path_before_the_path(self) -> None:
        scope = origin_form(scope_of("http://a.example/v1/models", root_path="/tunery"))
        assert (scope["path"], scope["raw_path"]) == ("/tunery/v1/models", b"/tunery/v1/models")


def test_an_absolute_target_is_answered_like_its_path(live_server: LiveServer, api_key: str) -> None:
    for target, status, key in (
        (f"{live_server.root}/v1/models", 200, "data"),
        (f"{live_server.root}/v1/files?limit=1", 200, "data"),
        ("http://elsewhere.example/openai/files?limit=x&api-version=1", 400, "error"),
        (f"{live_server.root}/v1/nothing", 404, "error"),
        (f"{live_server.root}/healthz", 200, "status"),
    ):
        received = answer_to(live_server, target, api_key)
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode()), (target, received)
        assert key in json.loads(body)
    assert b"GET /v1/nothing" in answer_to(live_server, f"{live_server.root}/v1/nothing", api_key)


def answer_to(server: LiveServer, target: str, api_key: str) -> bytes:
    head = f"GET {target} HTTP/1.1\r\nHost: other\r\nAuthorization: Bearer {api_key}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(head.encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))
