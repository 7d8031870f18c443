"""examples/auth-proxy/nginx.conf in a real nginx, between a gateway's stand-in and the real API."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.operations.deploy.nginx import EXAMPLES, NginxProxy, run_nginx, upstream
from tests.serving import LiveServer

HOST = "tunery-api.example.com"
pytestmark = [
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
    pytest.mark.extended("a proxy of the deployment guide"),
]


class Gateway(BaseHTTPRequestHandler):
    """Identifies alice and mallory by their tokens, as an identity provider's gateway."""

    users: Mapping[str, str] = {
        "Bearer token-of-alice": "alice@example.com",
        "Bearer token-of-mallory": "mallory@example.com",
    }

    def do_GET(self) -> None:
        user = self.users.get(self.headers.get("Authorization", ""))
        self.send_response(202 if user else 401)
        if user:
            self.send_header("X-Auth-Request-Email", user)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[int]:
    with upstream(Gateway) as port:
        yield port


@pytest.fixture
def proxy(live_server: LiveServer, gateway: int, api_key: str, tmp_path: Path) -> Iterator[NginxProxy]:
    (tmp_path / "keys.map").write_text(f'"alice@example.com" "Bearer {api_key}";\n')
    places = {
        "127.0.0.1:8000": f"127.0.0.1:{live_server.port}",
        "127.0.0.1:4180": f"127.0.0.1:{gateway}",
        "/etc/tunery": str(tmp_path),
    }
    configuration = (EXAMPLES / "auth-proxy" / "nginx.conf").read_text(encoding="utf-8")
    with run_nginx(configuration, tmp_path, [HOST], places) as proxy:
        yield proxy


def status(proxy: NginxProxy, path: str = "/v1/files", **headers: str) -> int:
    with proxy.send("GET", HOST, path, {name.replace("_", "-"): value for name, value in headers.items()}) as answer:
        return int(answer.status_code)


def test_a_user_with_a_key_has_access_and_sends_uploads(proxy: NginxProxy) -> None:
    content = b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n' * 40_000
    form: dict[str, Any] = {"files": {"file": ("a.jsonl", content)}, "data": {"purpose": "fine-tune"}}
    with proxy.send("POST", HOST, "/v1/files", {"Authorization": "Bearer token-of-alice"}, **form) as answer:
        answer.read()
        assert answer.status_code == 200, answer.text
    assert status(proxy, Authorization="Bearer token-of-alice") == 200


def test_a_user_without_a_key_and_a_stranger_have_none(proxy: NginxProxy) -> None:
    assert status(proxy, Authorization="Bearer token-of-mallory") == 401
    assert status(proxy) == 401
    assert status(proxy, "/healthz") == 200


def test_nothing_that_a_client_sends_takes_the_place_of_the_user(proxy: NginxProxy, api_key: str) -> None:
    assert status(proxy, Authorization=f"Bearer {api_key}") == 401
    assert status(proxy, X_Auth_Request_Email="alice@example.com") == 401
    mallory = "Bearer token-of-mallory"
    assert status(proxy, Authorization=mallory, X_Auth_Request_Email="alice@example.com") == 401
    assert status(proxy, "/openai/files?api-version=1", Authorization=mallory, api_key=api_key) == 401
    assert status(proxy, "/_auth", Authorization="Bearer token-of-alice") == 404
