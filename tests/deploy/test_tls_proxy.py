"""examples/tls-proxy/nginx.conf in a real nginx, in front of the real API."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.storage import LocalStorage
from tests.deadline import until
from tests.deploy.containers import free_port
from tests.factories import make_base_model, make_file, make_job
from tests.serving import LiveServer

CONFIGURATION = Path(__file__).parents[2] / "examples" / "tls-proxy" / "nginx.conf"
HOSTS = ("tunery-api.example.com", "tunery.example.com")
pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


@dataclass
class Proxy:
    port: int
    client: httpx2.Client

    @contextmanager
    def send(
        self, method: str, host: str, path: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Iterator[httpx2.Response]:
        """Send a request to the proxy as a client sends it to `host`; the response is open until the block ends."""
        url = f"https://127.0.0.1:{self.port}{path}"
        request = self.client.build_request(method, url, headers={"Host": host, **(headers or {})}, **options)
        request.extensions["sni_hostname"] = host
        with closing(self.client.send(request, stream=True)) as response:
            yield response


class Upgrades(BaseHTTPRequestHandler):
    """In the place of the dashboard: answers with the headers by which a web socket begins."""

    def do_GET(self) -> None:
        body = f"{self.headers['Upgrade']} {self.headers['Connection']} {self.headers['X-Forwarded-Proto']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Upgrades) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(live_server: LiveServer, dashboard: int, tmp_path: Path) -> Iterator[Proxy]:
    port, certificate, key = free_port(), tmp_path / "fullchain.pem", tmp_path / "privkey.pem"
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=tunery"]
    subprocess.run(
        [*request, "-addext", f"subjectAltName={names}", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    text = CONFIGURATION.read_text(encoding="utf-8").replace("/etc/ssl/tunery", str(tmp_path))
    text = text.replace("listen 443", f"listen 127.0.0.1:{port}").replace(
        "127.0.0.1:8000", f"127.0.0.1:{live_server.port}"
    )
    text = text.replace("127.0.0.1:8001", f"127.0.0.1:{dashboard}")
    paths = "\n".join(
        f"  {kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(text.replace("http {", f"http {{\n{paths}", 1))
    command = ["nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"]
    with subprocess.Popen([*command, "-g", f"daemon off; pid {tmp_path}/nginx.pid;"], stderr=subprocess.PIPE) as nginx:
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx2.Client(verify=context, trust_env=False, timeout=20) as client:
            found = Proxy(port, client)
            try:
                until(lambda: is_up(found, nginx), "nginx listens", 20)
                yield found
            finally:
                nginx.terminate()
                nginx.wait()


def is_up(proxy: Proxy, nginx: subprocess.Popen[bytes]) -> bool:
    assert nginx.poll() is None, nginx.stderr and nginx.stderr.read()
    try:
        with proxy.send("GET", HOSTS[0], "/healthz") as answer:
            return answer.status_code == 200
    except httpx2.TransportError:
        return False


def test_uploads_of_more_than_nginxs_default_pass(proxy: Proxy, api_key: str) -> None:
    content = b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n' * 40_000
    headers = {"Authorization": f"Bearer {api_key}"}
    form = {"files": {"file": ("train.jsonl", content)}, "data": {"purpose": "fine-tune"}}
    with proxy.send("POST", HOSTS[0], "/v1/files", headers=headers, **form) as answer:
        answer.read()
        assert answer.status_code == 200, answer.text
        assert answer.json()["bytes"] == len(content)


def test_events_arrive_while_the_stream_is_open(
    proxy: Proxy, api_key: str, sessions: Sessions, storage: LocalStorage, project: Project, tmp_path: Path
) -> None:
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "base")
        job = make_job(session, project, make_file(session, storage, project))
    path = f"/v1/fine_tuning/jobs/{job.id}/events/stream"
    with proxy.send("GET", HOSTS[0], path, headers={"Authorization": f"Bearer {api_key}"}) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()  # held, as a collected iterator closes the connection
        first = next(line for line in lines if line.startswith("data:"))
    assert "fine_tuning.job.event" in first


def test_web_sockets_of_the_dashboard_pass(proxy: Proxy) -> None:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    with proxy.send("GET", HOSTS[1], "/", headers=headers) as answer:
        assert answer.read() == b"websocket upgrade https"


def test_the_page_and_the_file_agree() -> None:
    """docs/deploy.md names the directives that a proxy needs; the example has them."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    for directive in ("client_max_body_size 8200m", "proxy_request_buffering off", "proxy_buffering off"):
        assert re.search(rf"^\s*{directive};", text, re.MULTILINE)
