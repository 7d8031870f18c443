"""examples/tls-proxy/nginx.conf in a real nginx, in front of the real API."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.storage import LocalStorage
from tests.factories import make_base_model, make_file, make_job
from tests.operations.deploy.containers import free_port
from tests.operations.deploy.nginx import HOSTS, NginxProxy, run_example, upstream
from tests.serving import LiveServer

pytestmark = [
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
    pytest.mark.extended("a proxy of the deployment guide"),
]


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
    with upstream(Upgrades) as port:
        yield port


@pytest.fixture
def proxy(live_server: LiveServer, dashboard: int, tmp_path: Path) -> Iterator[NginxProxy]:
    with run_example(tmp_path, live_server.port, dashboard, int(free_port())) as proxy:
        yield proxy


def test_uploads_of_more_than_nginxs_default_pass(proxy: NginxProxy, api_key: str) -> None:
    content = b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n' * 40_000
    headers = {"Authorization": f"Bearer {api_key}"}
    form = {"files": {"file": ("train.jsonl", content)}, "data": {"purpose": "fine-tune"}}
    with proxy.send("POST", HOSTS[0], "/v1/files", headers=headers, **form) as answer:
        answer.read()
        assert answer.status_code == 200, answer.text
        assert answer.json()["bytes"] == len(content)


def test_events_arrive_while_the_stream_is_open(
    proxy: NginxProxy, api_key: str, sessions: Sessions, storage: LocalStorage, project: Project, tmp_path: Path
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


def test_web_sockets_of_the_dashboard_pass(proxy: NginxProxy) -> None:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    with proxy.send("GET", HOSTS[1], "/", headers=headers) as answer:
        assert answer.read() == b"websocket upgrade https"
