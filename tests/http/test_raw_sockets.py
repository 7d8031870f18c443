"""Attacks over raw sockets on the API at loopback, and on the nginx of examples/tls-proxy before it: each is refused or
bounded. docs/how-it-works/decisions/http.md says by which of them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app import main
from app.api.bootstrap_guard import require_proxy
from app.api.middleware.request_context import MAX_HEADER_BYTES
from app.db.engine import make_engine, make_sessions, transaction
from app.settings import Settings
from app.storage import LocalStorage
from tests.deadline import until
from tests.factories import make_file, make_key, make_project
from tests.operations.deploy.containers import free_port
from tests.operations.deploy.nginx import EXAMPLES, run_example
from tests.serving import api_process

LIMITS = {"TUNERY_KEEP_ALIVE_SECONDS": "1", "TUNERY_BODY_IDLE_SECONDS": "0.8", "TUNERY_BODY_RATE_WINDOW_SECONDS": "1.2"}
PROXY_LIMITS = {
    "client_header_timeout 10s": "client_header_timeout 1s",
    "client_body_timeout 40s": "client_body_timeout 2s",
    "send_timeout 300s": "send_timeout 1s",
    "keepalive_timeout 75s": "keepalive_timeout 1s",
    "limit_conn clients 1000": "limit_conn clients 3",
}
SOCKET_TIMEOUT_SECONDS = 20.0
DRIP_SECONDS = 0.05
LARGE_BYTES = 24 << 20
NGINX = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True)
class Target:
    """The API, or the proxy in front of it."""

    address: tuple[str, int]
    key: str
    large_file: str
    log: Path  # of the API

    def head(self, line: str, *headers: str) -> bytes:
        given = (f"{line} HTTP/1.1", "Host: test", f"Authorization: Bearer {self.key}", *headers, "", "")
        return "\r\n".join(given).encode()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, SOCKET_TIMEOUT_SECONDS)

    def answer(self, *sent: bytes, drip: bytes = b"") -> bytes:
        """All that is received for `sent`, and for `drip` repeated, until the server closes the connection."""
        with closing(self.connect()) as connection:
            for part in sent:
                connection.sendall(part)
                time.sleep(DRIP_SECONDS if len(sent) > 1 else 0)
            stop = _drip(connection, drip) if drip else None
            received = _until_closed(connection)
            if stop:
                stop()
        return received

    def paths(self) -> list[Any]:
        lines = [json.loads(line) for line in self.log.read_text().rpartition("\n")[0].splitlines()]
        return [line["path"] for line in lines if line["event"] == "request"]


@pytest.fixture(scope="module")
def targets(
    postgres_server: str, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Target]]:
    directory = tmp_path_factory.mktemp("sockets")
    settings = Settings(database_url=postgres_server, redis_url=valkey_server, data_dir=directory / "data")
    engine = make_engine(postgres_server)
    with transaction(make_sessions(engine)) as session:
        project = make_project(session, directory.name)
        key = make_key(session, project)
        content = bytes(LARGE_BYTES)
        large = make_file(session, LocalStorage(settings.storage_dir), project, content, purpose="user_data").id
    engine.dispose()
    with ExitStack() as held:
        server, _ = held.enter_context(api_process(settings, environment=LIMITS, log=directory / "log"))
        found = {"loopback": Target((server.host, server.port), key, large, directory / "log")}
        if shutil.which("nginx"):
            port = int(free_port())
            held.enter_context(run_example(directory, server.port, server.port, port, PROXY_LIMITS))
            found["nginx"] = Target(("127.0.0.1", port), key, large, directory / "log")
        yield found


@pytest.fixture(params=["loopback", pytest.param("nginx", marks=NGINX)])
def target(request: pytest.FixtureRequest, targets: dict[str, Target]) -> Target:
    return targets[request.param]


@pytest.fixture
def proxy(targets: dict[str, Target]) -> Target:
    if "nginx" not in targets:
        pytest.skip("nginx is not installed")
    return targets["nginx"]


def _until_closed(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def _drip(connection: socket.socket, part: bytes) -> Callable[[], None]:
    """Send `part` again and again, faster than any silence is noticed; the function that stops it."""
    over = threading.Event()

    def send() -> None:
        try:
            while not over.wait(DRIP_SECONDS):
                connection.sendall(part)
        except OSError:
            pass

    thread = threading.Thread(target=send, daemon=True)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join()

    return stop


def status(answer: bytes) -> int:
    """Of the only response."""
    (code,) = re.findall(rb"HTTP/1\.1 (\d+) ", answer)
    return int(code)


class TestSmuggling:
    @pytest.mark.parametrize(
        "head",
        [
            b"Content-Length: 41\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nContent-Length: 41",
            b"Content-Length: 5\r\nContent-Length: 41",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding : chunked",
            b"Transfer-Encoding: identity",
            b"Host: other\r\nContent-Length: 5",
            b"X: a\r\n b\r\nContent-Length: 5",
        ],
    )
    def test_smuggling_by_an_ambiguous_head_is_refused(self, target: Target, head: bytes) -> None:
        sent = b"POST /v1/files HTTP/1.1\r\nHost: test\r\n" + head + b"\r\n\r\n" + LAST_CHUNK + SMUGGLED
        assert status(target.answer(sent)) in (400, 501)
        assert "/smuggled" not in target.paths()

    @pytest.mark.parametrize(
        "head",
        [
            b"POST /v1/files HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST /v1/files HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET /v1/files\r\n\r\n",
            b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
        ids=["chunks of HTTP/1.0", "no host", "HTTP/0.9", "a tunnel"],
    )
    def test_smuggling_by_another_protocol_is_refused(self, target: Target, head: bytes) -> None:
        answer = target.answer(head + LAST_CHUNK + SMUGGLED)
        assert re.match(rb"HTTP/1\.1 40[05] |\{\"error\"", answer)
        assert "/smuggled" not in target.paths()

    def test_smuggling_by_broken_chunks_is_refused(self, target: Target) -> None:
        head = target.head("POST /v1/fine_tuning/jobs", "Transfer-Encoding: chunked")
        for sent in ((head + b"1\r\n{\r\n", b"no length\r\n"), (head + b"1\r\n{\r\nno length\r\n" + SMUGGLED,)):
            assert status(target.answer(*sent)) in (400, 502)
        assert "/smuggled" not in target.paths()

    def test_smuggling_behind_an_upgrade_is_refused(self, targets: dict[str, Target]) -> None:
        loopback = targets["loopback"]
        upgrade = ("Connection: Upgrade", "Upgrade: h2c", "Content-Length: 1")
        assert status(loopback.answer(loopback.head("POST /v1/fine_tuning/jobs", *upgrade) + b"{" + SMUGGLED)) == 400
        assert "/smuggled" not in loopback.paths()

    def test_each_request_of_a_pipeline_is_answered(self, target: Target) -> None:
        requests = target.head("GET /healthz") * 4 + target.head("GET /healthz", "Connection: close")
        assert target.answer(requests).count(b"HTTP/1.1 200") == 5

    def test_an_absolute_target_is_accepted(self, target: Target) -> None:
        assert status(target.answer(target.head("GET http://test/v1/models", "Connection: close"))) == 200


class TestSlowClients:
    def test_an_idle_connection_is_closed(self, target: Target) -> None:
        with closing(target.connect()) as connection:
            connection.sendall(target.head("GET /healthz"))
            assert status(_until_closed(connection)) == 200  # by TUNERY_KEEP_ALIVE_SECONDS, or the proxy's timeout

    def test_the_proxy_disconnects_clients_with_slow_headers(self, proxy: Target) -> None:
        for sent in (b"", b"GET /healthz HTTP/1.1\r\nX-Slow: "):
            assert proxy.answer(sent, drip=b"a" if sent else b"").partition(b"\r\n")[0] in (b"", b"HTTP/1.1 408 ")

    @pytest.mark.parametrize(
        ("kind", "begin", "drip"),
        [
            ("Content-Length: 90000", b"{", b""),
            ("Content-Length: 90000", b"{", b" "),
            ("Transfer-Encoding: chunked", b"1\r\n{\r\n", b"1\r\n \r\n"),
        ],
        ids=["silent", "dripping", "dripping chunks"],
    )
    def test_a_slow_body_is_a_408(self, target: Target, kind: str, begin: bytes, drip: bytes) -> None:
        answer = target.answer(target.head("POST /v1/fine_tuning/jobs", kind) + begin, drip=drip)
        assert status(answer) == 408
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"

    def test_the_proxy_waits_longer_for_a_body_than_the_api_which_answers(self) -> None:
        text = (EXAMPLES / "tls-proxy/nginx.conf").read_text()
        (seconds,) = re.findall(r"client_body_timeout (\d+)s;", text)
        assert int(seconds) > Settings.model_fields["body_idle_seconds"].default

    def test_a_body_announced_by_expect_that_never_arrives_is_a_408(self, target: Target) -> None:
        answer = target.answer(target.head("POST /v1/fine_tuning/jobs", "Content-Length: 10", "Expect: 100-continue"))
        assert answer.startswith(b"HTTP/1.1 100")
        assert answer.count(b"HTTP/1.1 408") == 1

    @pytest.mark.parametrize("drip", [b"", b"x"])
    def test_a_refusal_is_sent_although_the_body_is_incomplete(self, target: Target, drip: bytes) -> None:
        head = b"POST /v1/files HTTP/1.1\r\nHost: test\r\nContent-Length: 90000\r\n\r\n"
        assert status(target.answer(head, drip=drip)) == 401

    def test_a_client_that_sends_a_whole_refused_body_reads_the_answer(self, target: Target) -> None:
        head = b"POST /v1/files HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 4000000\r\n\r\n"
        assert status(target.answer(head + bytes(4_000_000))) == 401

    def test_the_proxy_disconnects_clients_that_do_not_read(self, proxy: Target) -> None:
        path = f"/v1/files/{proxy.large_file}/content"
        with closing(socket.socket()) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            connection.settimeout(SOCKET_TIMEOUT_SECONDS)
            connection.connect(proxy.address)
            connection.sendall(proxy.head(f"GET {path}"))
            until(lambda: path in proxy.paths(), "its end", SOCKET_TIMEOUT_SECONDS)
            assert len(_until_closed(connection)) < LARGE_BYTES


class TestSizes:
    @pytest.mark.parametrize("lines", [1, 64])
    def test_huge_headers_are_refused(self, target: Target, lines: int) -> None:
        headers = [f"X-{number}: {'a' * (4 * MAX_HEADER_BYTES // lines)}" for number in range(lines)]
        answer = target.answer(target.head("GET /healthz", *headers))
        assert (status(answer), list(json.loads(answer.partition(b"\r\n\r\n")[2]))) == (400, ["error"])

    def test_a_head_without_an_end_is_refused_by_the_proxy(self, proxy: Target) -> None:
        assert status(proxy.answer(b"GET /healthz HTTP/1.1\r\nX: " + b"a" * (4 * MAX_HEADER_BYTES))) == 400

    def test_connections_of_a_client_are_limited_by_the_proxy(self, proxy: Target) -> None:
        with ExitStack() as held:
            for _ in range(3):
                stream = held.enter_context(closing(proxy.connect()))
                stream.sendall(proxy.head("GET /v1/events/stream"))
                assert stream.recv(4096).startswith(b"HTTP/1.1 200")
            refused = proxy.answer(proxy.head("GET /healthz"))
        assert status(refused) == 429
        assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["type"] == "proxy_error"


class TestTheStart:
    def test_a_start_beyond_loopback_is_refused_without_a_proxy(self, tmp_path: Path) -> None:
        environment = {"DATABASE_URL": "postgresql://me@127.0.0.1:1/x", "REDIS_URL": "redis://127.0.0.1:1/0"}
        done = subprocess.run(
            [sys.executable, "-m", "app.serve", "--host", "0.0.0.0", "--port", free_port()],
            env=environment | {"TUNERY_DATA_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 1
        assert "TUNERY_BEHIND_PROXY=true" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
    def test_a_start_behind_a_proxy_is_accepted(self, common_settings: Settings, host: str) -> None:
        require_proxy(common_settings.model_copy(update={"behind_proxy": True}), host)

    def test_a_start_with_another_parser_is_refused(
        self, common_settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(main, "load_settings", lambda: common_settings)
        monkeypatch.setitem(sys.modules, main.H11_MODULE, main)
        with pytest.raises(SystemExit, match="--http httptools"):
            main.app_from_environment()
