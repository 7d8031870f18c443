"""HEAD is answered wherever GET is: the same status and headers, no body (RFC 9110, 9.3.2)."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import httpx2
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.db.engine import Sessions
from app.db.tables import Job
from tests.serving import LiveServer

DIFFERS = {"x-request-id", "openai-processing-ms", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"}


def readable(app: FastAPI, job: Job) -> list[str]:
    """A URL for each path that has GET, streams left out: one about this job where it can be."""
    ids = {"job_id": job.id, "file_id": job.training_file_id, "model": job.fine_tuned_model or ""}
    known = [path for path, item in app.openapi()["paths"].items() if "get" in item] + ["/openapi.json", "/docs"]
    return [
        re.sub(r"\{(\w+)(:path)?\}", lambda found: ids.get(found[1], "nothere"), path)
        for path in known
        if not path.endswith("/stream")
    ]


class TestHead:
    def test_head_has_the_status_and_headers_of_get_and_no_body(
        self, client: TestClient, app: FastAPI, succeeded: Job
    ) -> None:
        statuses = set()
        for url in readable(app, succeeded):
            head, get = client.head(url), client.get(url)
            statuses.add(head.status_code)
            assert (head.status_code, head.content) == (get.status_code, b""), url
            seen, expected = (
                {name: value for name, value in answer.headers.items() if name not in DIFFERS} for answer in (head, get)
            )
            if head.status_code >= 400:
                del expected["content-length"]
            assert seen == expected, url
        assert {200, 404} <= statuses

    def test_every_path_with_get_allows_head(self, client: TestClient, app: FastAPI) -> None:
        for path, item in app.openapi()["paths"].items():
            allowed = client.request("OPTIONS", re.sub(r"\{.*?\}", "nothere", path)).headers["allow"].split(", ")
            assert ("HEAD" in allowed) >= ("get" in item), path
            assert len(allowed) == len(set(allowed))

    def test_head_of_a_path_without_get_is_a_405(self, client: TestClient) -> None:
        answer = client.head("/v1/fine_tuning/jobs/ftjob-x/cancel")
        assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "POST", b"")

    def test_head_waits_as_get_does(self, client: TestClient, succeeded: Job) -> None:
        """Of a job that is over, who does not have it already is answered at once."""
        answer = client.head(f"/v1/fine_tuning/jobs/{succeeded.id}?wait=60")
        assert (answer.status_code, answer.content) == (200, b"")
        etag = answer.headers["etag"]
        waited = client.head(f"/v1/fine_tuning/jobs/{succeeded.id}?wait=0.05", headers={"If-None-Match": etag})
        assert waited.status_code == 304

    def test_head_ignores_a_range(self, client: TestClient, succeeded: Job) -> None:
        """RFC 9110, 14.2: a Range counts with GET only."""
        url = f"/v1/files/{succeeded.training_file_id}/content"
        for asked in ("bytes=0-1", "bytes=99999999-"):
            answer = client.head(url, headers={"Range": asked})
            assert answer.status_code == 200
            assert "content-range" not in answer.headers

    def test_head_of_a_stream_ends_with_its_headers(
        self, live_server: LiveServer, api_key: str, sessions: Sessions, succeeded: Job
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        for path in ("events/stream", f"fine_tuning/jobs/{succeeded.id}/events/stream"):
            url = f"{live_server.url}/{path}"
            with httpx2.Client(trust_env=False, timeout=10) as http:
                head = http.head(url, headers=headers)
                with http.stream("GET", url, headers=headers) as get:
                    for name in ("content-type", "cache-control", "x-accel-buffering"):
                        assert head.headers[name] == get.headers[name]
                assert head.status_code == get.status_code == 200

    def test_the_connection_is_usable_after_head(self, live_server: LiveServer, api_key: str) -> None:
        """No byte of a body: the next answer on the same connection begins where the first one's headers end."""
        request = "{} /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n{}\r\n"
        with socket.create_connection((live_server.host, live_server.port), timeout=10) as connection:
            connection.sendall(request.format("HEAD", api_key, "").encode())
            connection.sendall(request.format("GET", api_key, "Connection: close\r\n").encode())
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        head, get = (part for part in received.split(b"HTTP/1.1 ") if part)
        assert head.startswith(b"200")
        assert head.endswith(b"\r\n\r\n")
        body: Any = json.loads(get.partition(b"\r\n\r\n")[2])
        assert body["object"] == "list"
