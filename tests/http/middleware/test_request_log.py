"""The log of a real server process: one JSON line for each request, however it ended, and no secret in any."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.api.docs_page import page
from app.api.middleware import request_log
from app.db.engine import make_engine, make_sessions, transaction
from app.db.tables import ApiKey
from app.main import ROUTERS
from app.settings import Settings
from app.storage import LocalStorage
from tests.deadline import until
from tests.factories import make_base_model, make_file, make_job, make_key, make_project
from tests.serving import LiveServer, api_process

ROUTES = sorted(
    (method, route.path_format)
    for router in (*ROUTERS, page.router)
    for route in router.routes
    for method in route.methods or ()
)
STREAMED = [path for _, path in ROUTES if path.endswith("/stream")]
NUMBERS = itertools.count(1)
FAULTS = """
import json, sys
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient
from app.main import app_from_environment

app = app_from_environment()

@app.get("/fail")
def fail():
    return 1 / 0

@app.get("/break")
def begin_and_fail():
    return StreamingResponse(str(1 / n).encode() for n in (1, 0))

class Panic(BaseException):
    pass

@app.get("/panic")
def panic():
    raise Panic

client = TestClient(app, raise_server_exceptions=False)
answer = client.get("/panic")
print(json.dumps({"panic": answer.status_code, "body": answer.json()}), file=sys.stderr)
client.get("/fail", headers={"X-Request-Id": "fails"})
client.get("/break", headers={"X-Request-Id": "breaks"})
"""
FIELDS = {
    "event", "level", "timestamp", "request_id", "method", "route", "path", "query", "status", "outcome",
    "duration_ms", "key_id", "project_id", "bytes_in", "bytes_out", "address",
}  # fmt: skip


@dataclass(frozen=True)
class Served:
    server: LiveServer
    key: str
    key_id: str
    project_id: str
    job_id: str
    log: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def all_lines(self) -> list[dict[str, Any]]:
        """Every line of the log is a JSON object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def line(self, request_id: str) -> dict[str, Any]:
        """The one line of the request, as soon as it is there."""
        until(lambda: self._lines(request_id), f"the line of {request_id}", seconds=20)
        (line,) = self._lines(request_id)
        assert set(line) == FIELDS
        assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None
        return line

    def _lines(self, request_id: str) -> list[dict[str, Any]]:
        complete = self.log.read_text().rpartition("\n")[0].splitlines()
        found = [json.loads(line) for line in complete if request_id in line]
        return [line for line in found if line["event"] == "request"]


@pytest.fixture(scope="module")
def served(postgres_server: str, valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("log")
    settings = Settings(database_url=postgres_server, redis_url=valkey_server, data_dir=directory / "data")
    storage = LocalStorage(settings.storage_dir)
    engine = make_engine(postgres_server)
    with transaction(make_sessions(engine)) as session:
        # Its own names: when the processes share the tests, this fixture may be made twice in one of them.
        project = make_project(session, directory.name)
        key = make_key(session, project)
        key_id = session.query(ApiKey.id).filter_by(project_id=project.id).scalar()
        make_base_model(session, directory / "tiny", directory.name)
        job = make_job(session, project, make_file(session, storage, project), directory.name)
        facts = (key, key_id, project.id, job.id)
    engine.dispose()
    limits = {"TUNERY_BODY_IDLE_SECONDS": "0.5"}
    with api_process(settings, environment=limits, log=directory / "log") as (server, _):
        yield Served(server, *facts, directory / "log")


@pytest.fixture
def request_id() -> str:
    return f"test-{next(NUMBERS)}-end"


def send(served: Served, request_id: str, method: str, path: str, **how: Any) -> httpx2.Response:
    headers = {"X-Request-Id": request_id} | how.pop("headers", served.headers)
    with httpx2.Client(base_url=served.server.root, trust_env=False, timeout=30) as client:
        return client.request(method, path, headers=headers, **how)


class TestEveryRoute:
    @pytest.mark.parametrize(("method", "route"), [each for each in ROUTES if each[1] not in STREAMED])
    def test_every_route_logs_one_line_for_a_request(
        self, served: Served, request_id: str, method: str, route: str
    ) -> None:
        path = re.sub(r"\{\w+\}", "some-id", route)
        answer = send(served, request_id, method, path)
        line = served.line(request_id)
        assert (line["method"], line["route"], line["path"]) == (method, route, path)
        assert (line["status"], line["outcome"]) == (answer.status_code, "completed")
        assert line["level"] == "info"
        assert 0 <= line["duration_ms"] < 30_000
        assert line["bytes_out"] == (0 if method == "HEAD" else len(answer.content))
        has_key = path.startswith("/v1")
        assert (line["key_id"], line["project_id"]) == ((served.key_id, served.project_id) if has_key else (None, None))

    @pytest.mark.parametrize("route", STREAMED)
    def test_a_stream_logs_its_line_when_it_ends(self, served: Served, request_id: str, route: str) -> None:
        headers = served.headers | {"X-Request-Id": request_id}
        url = served.server.root + route.format(job_id=served.job_id)
        with httpx2.stream("GET", url, headers=headers, trust_env=False) as answer:
            chunks = answer.iter_raw()  # held, as a collected iterator closes the connection
            next(chunks)
            assert f'"request_id": "{request_id}"' not in served.log.read_text()
        line = served.line(request_id)
        assert (line["route"], line["status"], line["outcome"]) == (route, 200, "client_disconnected")
        assert line["bytes_out"] > 0


class TestARequest:
    def test_the_line_has_the_size_of_the_body(self, served: Served, request_id: str) -> None:
        send(served, request_id, "POST", "/v1/fine_tuning/jobs", content=b"{" + b" " * 98 + b"}")
        assert served.line(request_id)["bytes_in"] == 100

    def test_under_azures_names_has_the_route_that_answered(self, served: Served, request_id: str) -> None:
        send(served, request_id, "GET", "/openai/v1/files?api-version=x", headers={"api-key": served.key})
        line = served.line(request_id)
        assert (line["route"], line["path"]) == ("/v1/files", "/openai/v1/files")
        assert line["key_id"] == served.key_id

    @pytest.mark.parametrize(
        ("method", "path", "headers", "status"),
        [
            ("GET", "/v1/nowhere", {}, 404),
            ("GET", "/v1/files", {}, 401),
            ("GET", "/v1/files", {"Authorization": "Bearer wrong"}, 401),
            ("PUT", "/v1/files", {}, 405),
            ("GET", "/v1/files/%00", {}, 404),
            ("GET", "/v1/files?after=%00", {}, 400),
        ],
    )
    def test_a_refused_request_logs_its_status(
        self, served: Served, request_id: str, method: str, path: str, headers: dict[str, str], status: int
    ) -> None:
        assert send(served, request_id, method, path, headers=headers).status_code == status
        assert served.line(request_id)["status"] == status

    def test_a_request_that_is_too_large_logs_a_413(self, served: Served, request_id: str) -> None:
        answer = send(served, request_id, "POST", "/v1/fine_tuning/jobs", content=b" " * (2 << 20))
        assert answer.status_code == served.line(request_id)["status"] == 413

    def test_without_an_id_has_the_one_of_its_answer(self, served: Served) -> None:
        answer = httpx2.get(f"{served.server.root}/healthz", trust_env=False)
        assert served.line(answer.headers["x-request-id"])["path"] == "/healthz"


class TestAClientThatLeaves:
    @pytest.mark.parametrize(
        ("line", "body"),
        [
            ("POST /v1/fine_tuning/jobs HTTP/1.1\r\nContent-Length: 100", "{"),
            ("GET /v1/fine_tuning/jobs/{job}?wait=30 HTTP/1.1\r\nIf-None-Match: {etag}", ""),
        ],
    )
    def test_a_client_that_disconnects_is_logged_as_499(
        self, served: Served, request_id: str, line: str, body: str
    ) -> None:
        etag = send(served, "etag-of-job", "GET", f"/v1/fine_tuning/jobs/{served.job_id}").headers["etag"]
        head = f"{line.format(job=served.job_id, etag=etag)}\r\nHost: x\r\nX-Request-Id: {request_id}\r\n"
        head += f"Authorization: Bearer {served.key}\r\n\r\n"
        with closing(socket.create_connection((served.server.host, served.server.port))) as connection:
            connection.sendall((head + body).encode())
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):  # it is at work
                connection.recv(1)
        found = served.line(request_id)
        assert (found["outcome"], found["status"]) == ("client_disconnected", 499)


class TestSecrets:
    """A key is put in every place where it does not belong."""

    @pytest.mark.parametrize(
        "path",
        [
            "/healthz?api_key={key}",
            "/v1/files?api_key={key}&limit=1",
            "/v1/files?{key}",
            "/v1/files?{key}=1",
            "/v1/files/{key}",
            "/v1/nowhere/{key}/x",
            "/v1/fine_tuning/jobs?metadata[team]={key}",
        ],
    )
    @pytest.mark.parametrize("has_good_key", [True, False])
    def test_a_key_in_a_url_is_not_logged(self, served: Served, request_id: str, path: str, has_good_key: bool) -> None:
        how = {} if has_good_key else {"headers": {}}
        send(served, request_id, "GET", path.format(key=served.key), **how)
        served.line(request_id)
        assert served.key not in served.log.read_text()

    def test_a_key_in_headers_and_bodies_is_not_logged(self, served: Served, request_id: str) -> None:
        headers = served.headers | dict.fromkeys(("X-Key", "User-Agent", "Cookie", "Idempotency-Key"), served.key)
        body = {"model": served.key, served.key: 1, "training_file": served.key}
        send(served, request_id, "POST", "/v1/fine_tuning/jobs", json=body, headers=headers)
        served.line(request_id)
        assert served.key not in served.log.read_text()

    def test_a_key_as_method_is_not_logged(self, served: Served, request_id: str) -> None:
        assert send(served, request_id, served.key, "/healthz").status_code == 400
        assert served.key not in served.log.read_text()

    @pytest.mark.parametrize("value", ["{key}", "Bearer {key}", "x-{key}"])
    def test_a_key_as_request_id_is_replaced(self, served: Served, value: str) -> None:
        answer = send(served, value.format(key=served.key), "GET", "/v1/files")
        assert answer.headers["x-request-id"].startswith("req_")
        served.line(answer.headers["x-request-id"])
        assert served.key not in served.log.read_text()

    def test_a_key_of_another_form_is_no_request_id_either(self) -> None:
        given = {b"x-request-id": b"0123456789abcdef0123"}
        assert request_log.request_id_of(given | {b"authorization": b"Bearer 0123456789abcdef0123"}).startswith("req_")
        assert request_log.request_id_of(given) == "0123456789abcdef0123"

    @pytest.mark.parametrize(
        ("query", "shown"),
        [
            (b"", ""),
            (b"limit=1&after=ftjob-1", "limit=***&after=***"),
            (b"metadata%5Bteam%5D=search", "metadata[team]=***"),
            (b"alone", "***"),
            (b"a=1=2&=3&", "a=***&***&***"),
            (b"two%0Alines=1", "***"),
            (b"k" * 100 + b"=1", "***"),
        ],
    )
    def test_values_of_a_query_are_masked_and_names_stay(self, query: bytes, shown: str) -> None:
        assert request_log.masked_query(query) == shown


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    environment = os.environ | {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "REDIS_URL": "redis://127.0.0.1:1/0",
        "TUNERY_DATA_DIR": str(tmp_path_factory.mktemp("fault")),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


class TestAFault:
    """In a process of its own, as its log goes to standard error."""

    def test_a_fault_logs_its_line_and_a_traceback_with_the_same_id(self, faults: list[dict[str, Any]]) -> None:
        traceback, line = (each for each in faults if each.get("request_id") == "fails")
        assert (line["event"], line["status"], line["level"], line["outcome"]) == ("request", 500, "error", "completed")
        assert (traceback["event"], traceback["level"]) == ("request failed", "error")
        assert "in fail\n" in traceback["exception"]
        assert "ZeroDivisionError" in traceback["exception"]

    def test_a_base_exception_is_a_500(self, faults: list[dict[str, Any]]) -> None:
        (answer,) = (each for each in faults if "panic" in each)
        assert (answer["panic"], set(answer["body"])) == (500, {"error"})

    def test_a_fault_within_a_response_logs_an_aborted_request(self, faults: list[dict[str, Any]]) -> None:
        traceback, line = (each for each in faults if each.get("request_id") == "breaks")
        assert (line["event"], line["status"], line["level"], line["outcome"]) == ("request", 200, "error", "aborted")
        assert "ZeroDivisionError" in traceback["exception"]


class TestTheLog:
    def test_the_log_has_only_json_and_no_access_log_of_uvicorn(self, served: Served) -> None:
        send(served, "ready", "GET", "/readyz")
        assert not [line for line in served.all_lines() if re.search('alembic|Context impl|HTTP/1.1"', str(line))]
        assert "Application startup complete." in {line["event"] for line in served.all_lines()}
