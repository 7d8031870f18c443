"""Slow and idle clients against a real server process, over raw sockets, with limits of about a second."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from app.api.middleware.request_context import RequestContextMiddleware
from app.api.transport import connection
from app.api.transport.connection import MAX_HEADER_BYTES, MAX_PARSED_AT_ONCE, LimitedConnection
from app.cli.local_stack import services
from app.db.engine import make_engine, make_sessions, transaction
from app.settings import Settings
from app.storage import LocalStorage
from tests.deadline import until
from tests.deploy import compose
from tests.factories import make_file, make_key, make_project
from tests.serving import LiveServer, api_process

HEADER_SECONDS, IDLE_SECONDS, SILENCE_SECONDS, WINDOW_SECONDS, STALL_SECONDS = 0.6, 1.5, 0.8, 1.2, 1.5
LIMITS = {
    "TUNERY_HEADER_TIMEOUT_SECONDS": str(HEADER_SECONDS),
    "TUNERY_KEEP_ALIVE_SECONDS": str(IDLE_SECONDS),
    "TUNERY_BODY_IDLE_SECONDS": str(SILENCE_SECONDS),
    "TUNERY_BODY_RATE_WINDOW_SECONDS": str(WINDOW_SECONDS),
    "TUNERY_RESPONSE_STALL_SECONDS": str(STALL_SECONDS),
}
SOCKET_TIMEOUT_SECONDS = 20.0
LARGE_BYTES = 24 << 20
DRIP_SECONDS = 0.05
FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
BODIES = [
    ("POST /v1/fine_tuning/jobs", "application/json", b"{"),
    ("POST /v1/files", "multipart/form-data; boundary=x", FORM),
]


@dataclass(frozen=True)
class Served:
    server: LiveServer
    key: str
    large_file: str
    log: Path

    def head(self, line: str, *headers: str) -> bytes:
        given = (f"{line} HTTP/1.1", "Host: test", f"Authorization: Bearer {self.key}", *headers, "", "")
        return "\r\n".join(given).encode()

    def connect(self, receive_buffer_bytes: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        connection.settimeout(SOCKET_TIMEOUT_SECONDS)
        connection.connect((self.server.host, self.server.port))
        return connection

    def lines(self) -> list[dict[str, object]]:
        return [line for line in map(json.loads, self.log.read_text().splitlines()) if line["event"] == "request"]


@pytest.fixture(scope="module")
def served(postgres_server: str, valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("connections")
    settings = Settings(database_url=postgres_server, redis_url=valkey_server, data_dir=directory / "data")
    engine = make_engine(postgres_server)
    with transaction(make_sessions(engine)) as session:
        project = make_project(session, "connections")
        key = make_key(session, project)
        content = os.urandom(LARGE_BYTES)
        large = make_file(session, LocalStorage(settings.storage_dir), project, content, purpose="user_data").id
    engine.dispose()
    with api_process(settings, environment=LIMITS, log=directory / "log") as (server, _):
        yield Served(server, key, large, directory / "log")


def received_until_closed(connection: socket.socket) -> bytes:
    """All that the server sent until it closed the connection."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def answered(connection: socket.socket, status: bytes = b"200") -> bool:
    """Read one whole response with a Content-Length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    (length,) = re.findall(rb"content-length: (\d+)", head.lower())
    connection.recv(int(length), socket.MSG_WAITALL)
    return head.startswith(b"HTTP/1.1 " + status)


def drip(connection: socket.socket, byte: bytes) -> Callable[[], None]:
    """Send a byte at a time, faster than any silence is noticed, until the server closes; what stops it."""
    over = threading.Event()

    def send() -> None:
        try:
            while not over.wait(DRIP_SECONDS):
                connection.sendall(byte)
        except OSError:
            pass

    thread = threading.Thread(target=send, daemon=True)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join()

    return stop


def is_timeout(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"http/1.1 408 request timeout", answer
    assert b"connection: close" in lines
    assert any(line.startswith(b"x-request-id: ") for line in lines)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return bool(error["code"] == "request_timeout")


class TestHeaders:
    def test_that_do_not_come_at_all_close_the_connection_without_a_word(self, served: Served) -> None:
        began = time.monotonic()
        with closing(served.connect()) as connection:
            assert received_until_closed(connection) == b""
        assert time.monotonic() - began >= HEADER_SECONDS - 0.05

    def test_that_come_byte_by_byte_are_answered_408(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
            stop = drip(connection, b"a")
            assert is_timeout(received_until_closed(connection))
            stop()

    def test_of_a_second_request_on_the_connection_have_the_same_limit(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(served.head("GET /healthz"))
            assert answered(connection)
            connection.sendall(b"GET /healthz HTTP/1.1\r\n")
            assert is_timeout(received_until_closed(connection))

    def test_that_wait_behind_another_request_have_it_from_when_that_is_answered(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(served.head("GET /healthz") + b"GET /healthz HTTP/1.1\r\n")
            answers = received_until_closed(connection)
        assert answers.startswith(b"HTTP/1.1 200")
        assert answers.count(b"HTTP/1.1 408") == 1

    def test_that_come_in_pieces_but_in_time_are_answered(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            for piece in (b"GET /heal", b"thz HTTP/1.1\r\nHo", b"st: test\r\n\r\n"):
                connection.sendall(piece)
                time.sleep(DRIP_SECONDS)
            assert answered(connection)


class TestAnIdleConnection:
    def test_is_kept_for_a_while_and_closed_then(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            for _ in range(2):
                connection.sendall(served.head("GET /healthz"))
                assert answered(connection)
                time.sleep(HEADER_SECONDS)  # idle is something else than headers that do not come
            connection.sendall(served.head("GET /healthz"))
            assert answered(connection)
            began = time.monotonic()
            assert received_until_closed(connection) == b""
            assert time.monotonic() - began >= IDLE_SECONDS - 0.1


class TestABody:
    @pytest.mark.parametrize(("line", "kind", "begin"), BODIES, ids=["json", "form"])
    @pytest.mark.parametrize("has_begun", [False, True])
    def test_that_falls_silent_is_answered_408(
        self, served: Served, line: str, kind: str, begin: bytes, has_begun: bool
    ) -> None:
        with closing(served.connect()) as connection:
            head = served.head(line, f"Content-Type: {kind}", "Content-Length: 9000")
            connection.sendall(head + (begin if has_begun else b""))
            assert is_timeout(received_until_closed(connection))

    @pytest.mark.parametrize(("line", "kind", "begin"), BODIES, ids=["json", "form"])
    def test_that_drips_is_answered_408(self, served: Served, line: str, kind: str, begin: bytes) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(served.head(line, f"Content-Type: {kind}", "Content-Length: 90000") + begin)
            stop = drip(connection, b" ")
            answer = received_until_closed(connection)
            stop()
        assert is_timeout(answer)
        assert b"1000 bytes per second" in answer

    def test_in_chunks_that_drips_is_answered_408(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(served.head("POST /v1/fine_tuning/jobs", "Transfer-Encoding: chunked") + b"1\r\n{\r\n")
            stop = drip(connection, b"1\r\n \r\n")
            assert is_timeout(received_until_closed(connection))
            stop()

    def test_whose_request_was_answered_already_is_not_waited_for_either(self, served: Served) -> None:
        """A 401 comes before the body is read; what follows is discarded, but not for ever."""
        head = b"POST /v1/files HTTP/1.1\r\nHost: test\r\nContent-Length: 90000\r\n\r\n"
        for byte in (b"", b"x"):
            with closing(served.connect()) as connection:
                connection.sendall(head)
                stop = drip(connection, byte)
                answer = received_until_closed(connection)
                stop()
            assert answer.startswith(b"HTTP/1.1 401")
            assert answer.count(b"HTTP/1.1") == 1

    def test_that_comes_after_its_answer_at_a_good_speed_leaves_the_connection_in_order(self, served: Served) -> None:
        body = b"x" * 40_000
        head = f"POST /v1/files HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with closing(served.connect()) as connection:
            connection.sendall(head)
            assert answered(connection, b"401")
            for start in range(0, len(body), 1000):
                connection.sendall(body[start : start + 1000])
                time.sleep(DRIP_SECONDS)
            connection.sendall(served.head("GET /healthz"))
            assert answered(connection)
            assert received_until_closed(connection) == b""  # and it is closed when it has been idle

    def test_that_is_slow_but_fast_enough_is_taken(self, served: Served) -> None:
        """Longer than every limit, at several times the lowest rate."""
        begin = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        body = begin + FORM + b"y" * 20_000 + b"\r\n--x--\r\n"
        kind = "Content-Type: multipart/form-data; boundary=x"
        began = time.monotonic()
        with closing(served.connect()) as connection:
            connection.sendall(served.head("POST /v1/files", kind, f"Content-Length: {len(body)}"))
            for start in range(0, len(body), 400):
                connection.sendall(body[start : start + 400])
                time.sleep(DRIP_SECONDS)
            answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert time.monotonic() - began > 2 * WINDOW_SECONDS

    def test_that_is_announced_with_expect_and_does_not_come_is_answered_408(self, served: Served) -> None:
        head = served.head("POST /v1/fine_tuning/jobs", "Content-Length: 10", "Expect: 100-continue")
        with closing(served.connect()) as connection:
            connection.sendall(head)
            answers = received_until_closed(connection)
        assert answers.startswith(b"HTTP/1.1 100")
        assert answers.count(b"HTTP/1.1 408") == 1


class TestAResponse:
    def test_that_is_a_stream_is_not_cut(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(served.head("GET /v1/events/stream"))
            assert connection.recv(4096).startswith(b"HTTP/1.1 2")
            connection.settimeout(2 * max(IDLE_SECONDS, STALL_SECONDS))
            with pytest.raises(TimeoutError):  # nothing more comes, and it is not closed
                received_until_closed(connection)

    def test_that_a_client_reads_slowly_comes_whole(self, served: Served) -> None:
        began = time.monotonic()
        with closing(served.connect(receive_buffer_bytes=1 << 16)) as connection:
            connection.sendall(served.head(f"GET /v1/files/{served.large_file}/content", "Connection: close"))
            size = 0
            while part := connection.recv(400 << 10):
                size += len(part)
                if time.monotonic() - began < 2 * STALL_SECONDS:
                    time.sleep(DRIP_SECONDS)
        assert size > LARGE_BYTES
        assert time.monotonic() - began > 2 * STALL_SECONDS

    @pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux can tell")
    def test_that_a_client_does_not_read_is_ended(self, served: Served) -> None:
        path = f"/v1/files/{served.large_file}/content"
        with closing(served.connect(receive_buffer_bytes=1 << 14)) as connection:
            connection.sendall(served.head(f"GET {path}", "X-Request-Id: stalled"))
            until(
                lambda: any(line["request_id"] == "stalled" for line in served.lines()),
                "its end",
                SOCKET_TIMEOUT_SECONDS,
            )
            assert len(received_until_closed(connection)) < LARGE_BYTES
        (line,) = [line for line in served.lines() if line["request_id"] == "stalled"]
        assert (line["status"], line["outcome"]) == (200, "client_disconnected")


class TestFraming:
    def test_with_two_lengths_is_refused_and_what_follows_is_not_read(self, served: Served) -> None:
        """What a proxy in front may take for the body, and this server for another request."""
        smuggled = served.head("GET /healthz")
        head = served.head("POST /v1/files", f"Content-Length: {5 + len(smuggled)}", "Transfer-Encoding: chunked")
        with closing(served.connect()) as connection:
            connection.sendall(head + b"0\r\n\r\n" + smuggled)
            answer = received_until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1
        assert b"connection: close" in answer.lower()
        assert (
            "Content-Length and Transfer-Encoding" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
        )

    def test_of_http_1_0_has_no_chunks(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(b"POST /v1/files HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
            assert received_until_closed(connection).startswith(b"HTTP/1.1 400")

    def test_that_is_no_http_is_a_400_in_the_shape_of_every_error(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
            answer = received_until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"

    @pytest.mark.parametrize("packets", [1, 2])
    def test_that_breaks_in_the_middle_of_a_body_is_a_400(self, served: Served, packets: int) -> None:
        request_id = f"broken-chunk-{packets}"
        head = served.head("POST /v1/fine_tuning/jobs", "Transfer-Encoding: chunked", f"X-Request-Id: {request_id}")
        good, bad = b"1\r\n{\r\n", b"no length\r\n"
        with closing(served.connect()) as connection:
            if packets == 2:
                connection.sendall(head + good)
                time.sleep(2 * DRIP_SECONDS)
                connection.sendall(bad)
            else:
                connection.sendall(head + good + bad)
            answer = received_until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        assert f"x-request-id: {request_id}".encode() in answer.lower()
        until(lambda: [line for line in served.lines() if line["request_id"] == request_id], "its line")
        (line,) = [line for line in served.lines() if line["request_id"] == request_id]
        assert (line["status"], line["outcome"]) == (400, "invalid_request")

    def test_of_an_upgrade_to_a_websocket_is_an_ordinary_request(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(served.head("GET /healthz", "Connection: upgrade", "Upgrade: websocket"))
            assert answered(connection)

    def test_of_requests_that_are_sent_without_waiting_gives_each_its_answer(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(served.head("GET /healthz") * 5)
            answers = received_until_closed(connection)
        assert answers.count(b"HTTP/1.1 200") == 5

    def test_of_an_upgrade_with_a_body_keeps_the_body_and_the_next_request(self, served: Served) -> None:
        upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "Content-Length: 1")
        with closing(served.connect()) as connection:
            connection.sendall(served.head("POST /v1/fine_tuning/jobs", *upgrade) + b"{" + served.head("GET /healthz"))
            answers = received_until_closed(connection)
        assert answers.startswith(b"HTTP/1.1 400")
        assert b"JSON" in answers
        assert answers.count(b"HTTP/1.1 200") == 1

    def test_with_headers_of_more_than_16_kibibytes_is_refused(self, served: Served) -> None:
        for complete in (False, True):
            with closing(served.connect()) as connection:
                connection.sendall(
                    served.head("GET /healthz", f"X-Long: {'a' * MAX_HEADER_BYTES}")[: None if complete else -4]
                )
                answer = received_until_closed(connection)
            assert answer.startswith(b"HTTP/1.1 400")
            assert b"16,384" in answer

    @pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"])
    def test_without_one_host_is_refused(self, served: Served, hosts: bytes) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n" + hosts + b"\r\n")
            assert received_until_closed(connection).startswith(b"HTTP/1.1 400")

    def test_of_a_transfer_encoding_beside_chunked_is_refused(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(served.head("POST /v1/files", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n")
            assert received_until_closed(connection).startswith(b"HTTP/1.1 400")

    def test_that_breaks_after_a_good_request_is_refused_after_its_response(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            connection.sendall(served.head("GET /healthz") + b"no HTTP\r\n\r\n")
            answers = received_until_closed(connection)
        assert answers.startswith(b"HTTP/1.1 200")
        assert answers.count(b"HTTP/1.1 400") == 1

    def test_of_a_request_behind_a_stream_ends_the_stream_when_the_client_is_gone(self, served: Served) -> None:
        with closing(served.connect()) as connection:
            stream = served.head("GET /v1/events/stream", "X-Request-Id: followed")
            connection.sendall(stream + served.head("GET /healthz"))
            assert connection.recv(4096).startswith(b"HTTP/1.1 2")
        until(lambda: any(line["request_id"] == "followed" for line in served.lines()), "its line")


class TestAConnectionInThisProcess:
    def test_parses_a_body_of_tiny_chunks_without_blocking_other_requests(self, settings: Settings) -> None:
        """A megabyte of them took seconds, in which no other request was answered."""
        size = 20 * MAX_PARSED_AT_ONCE // len(b"1\r\n-\r\n")
        pieces: list[int] = []

        async def app(_scope: Scope, receive: Receive, send: Send) -> None:
            more = True
            while more:
                message = await receive()
                pieces.append(len(message["body"]))
                more = message["more_body"]
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

        sent = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n-\r\n" * size + b"0\r\n\r\n"
        answers = asyncio.run(
            answers_of(app, settings, sent + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        )
        assert answers.count(b"HTTP/1.1 200") == 2
        assert sum(pieces) == size
        assert max(pieces) <= MAX_PARSED_AT_ONCE // len(b"1\r\n-\r\n") + 1

    def test_leaves_the_traceback_of_a_response_that_breaks_to_the_envelope(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
            raise ZeroDivisionError

        sent = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        assert asyncio.run(answers_of(RequestContextMiddleware(app), settings, sent)).endswith(b"\r\n\r\n1")
        assert [record.exc_info for record in caplog.records if record.name == connection.__name__] == [None]


async def answers_of(app: ASGIApp, settings: Settings, sent: bytes) -> bytes:
    """What a server of `app` answers to `sent` until it closes the connection."""
    config = uvicorn.Config(app, http=LimitedConnection, ws="none", lifespan="off", log_config=None)
    config.load()
    state = {"settings": settings}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: LimitedConnection(config, ServerState(), state), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(sent)
        answers = await reader.read()
        writer.close()
    return answers


COMMANDS = {
    "tunery up": services.programs(Path("/nowhere"), "127.0.0.1", 0)[0].command[:3],
    "compose": [sys.executable, *compose.services()["api"]["command"][1:]],
}


class TestTheServer:
    @pytest.mark.extended("starts the API in each documented way")
    @pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
    def test_has_the_limits_however_it_is_started(self, settings: Settings, command: list[str], tmp_path: Path) -> None:
        with api_process(settings, command, LIMITS, tmp_path / "log") as (server, _):
            idle = httpx2.Client(trust_env=False)
            assert idle.get(f"{server.root}/healthz").status_code == 200
            with socket.create_connection((server.host, server.port), SOCKET_TIMEOUT_SECONDS) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\n")
                assert is_timeout(received_until_closed(connection))
            with socket.create_connection((server.host, server.port), SOCKET_TIMEOUT_SECONDS) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
                assert received_until_closed(connection).startswith(b"HTTP/1.1 200")
            idle.close()
        assert "app.serve" not in (tmp_path / "log").read_text()  # which a server without the limits is warned of

    def test_without_them_is_warned_of(self, settings: Settings, tmp_path: Path) -> None:
        plain = [sys.executable, "-m", "uvicorn", "--factory", "app.main:app_from_environment"]
        with api_process(settings, plain, LIMITS, tmp_path / "log"):
            assert "start the server with python -m app.serve" in (tmp_path / "log").read_text()

    def test_waits_as_long_as_the_documentation_says(self) -> None:
        settings = Settings(database_url="postgresql://nowhere/x", redis_url="redis://nowhere")
        assert settings.header_timeout_seconds == 10
        assert settings.keep_alive_seconds == 75  # gateways wait 60 s
        assert settings.body_idle_seconds == 30
        assert settings.body_min_bytes_per_second == 1000
        assert settings.body_rate_window_seconds == 60

    def test_takes_the_older_name_of_a_limit_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TUNERY_UPLOAD_IDLE_SECONDS", "20")
        settings = Settings(database_url="postgresql://nowhere/x", redis_url="redis://nowhere")
        assert settings.body_idle_seconds == 20
        monkeypatch.setenv("TUNERY_BODY_IDLE_SECONDS", "25")
        settings = Settings(database_url="postgresql://nowhere/x", redis_url="redis://nowhere")
        assert settings.body_idle_seconds == 25
