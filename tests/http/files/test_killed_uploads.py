"""`kill -9` of the API in the midst of every way of uploading: a real process, a real signal, and another after it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from httpx2 import Client, Response
from sqlalchemy import select

from app.db.access import usage
from app.db.engine import Sessions, transaction
from app.db.tables import File, Project
from app.domain.files import MAX_PART_BYTES
from app.services.files.files import STALE_AFTER_SECONDS
from app.settings import Settings
from app.storage import LocalStorage
from tests.deadline import until
from tests.http.conftest import begin_upload
from tests.limited import limited_processes
from tests.serving import LiveServer, api_process

Json = dict[str, Any]
BOUNDARY = "nowhere-in-the-data"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
MORE_BYTES = 3 << 20  # what each had sent when the end came, beyond what was stored


@dataclass(frozen=True)
class Running:
    """One API process, and who talks to it."""

    server: LiveServer
    process: psutil.Process
    client: Client

    def begin(self, content: bytes, purpose: str = "batch") -> str:
        return begin_upload(self.client, len(content), purpose)

    def add(self, upload: str, data: bytes) -> Json:
        return answered(self.client.post(f"{upload}/parts", files={"data": ("part", data)}))

    def half(self, method: str, path: str, headers: dict[str, str], body: bytes, total_bytes: int) -> socket.socket:
        """A request of which no more than this ever comes."""
        connection = socket.create_connection((self.server.host, self.server.port), timeout=30)
        lines = {"Host": "tunery", "Authorization": self.client.headers["authorization"]} | headers
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}Content-Length: {total_bytes}\r\n\r\n".encode() + body)
        return connection


def answered(answer: Response) -> Json:
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@contextmanager
def running(settings: Settings, api_key: str) -> Iterator[Running]:
    with api_process(settings) as (server, process):
        headers = {"Authorization": f"Bearer {api_key}"}
        with httpx2.Client(base_url=server.root, headers=headers, trust_env=False, timeout=60) as client:
            yield Running(server, psutil.Process(process.pid), client)


def form(name: str, data: bytes) -> bytes:
    purpose = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n' if name == "file" else ""
    )
    head = f'{purpose}--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'
    return head.encode() + data


def staged(storage: LocalStorage) -> list[int]:
    return sorted(path.stat().st_size for path in storage.staging.iterdir())


def objects(storage: LocalStorage, prefix: str) -> list[str]:
    return sorted(storage.older_than(prefix, float("inf")))


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def let_it_be_long_ago(directory: Path) -> None:
    moment = time.time() - STALE_AFTER_SECONDS - 1
    for path in directory.iterdir():
        os.utime(path, (moment, moment))


def test_a_killed_api_leaves_uploads_that_continue(
    settings: Settings, storage: LocalStorage, sessions: Sessions, project: Project, api_key: str
) -> None:
    data = random.Random(1).randbytes(MAX_PART_BYTES + 2 * MORE_BYTES)
    cut = MAX_PART_BYTES + MORE_BYTES
    parts = [data[: 5 << 20], data[5 << 20 : 5 * MORE_BYTES]]
    with running(settings, api_key) as api:
        by_parts, as_stream = api.begin(parts[0] + parts[1]), api.begin(data)
        first = api.add(by_parts, parts[0])
        connections = [
            api.half("POST", "/v1/files", FORM, form("file", data[:MORE_BYTES]), len(data)),
            api.half("POST", f"{by_parts}/parts", FORM, form("data", parts[1][:MORE_BYTES]), len(parts[1]) + 500),
            api.half("PUT", f"{as_stream}/content", {}, data[:cut], len(data)),
        ]
        until(lambda: len(objects(storage, "uploads")) == 2, "the stream's first 64 MiB", seconds=30)
        until(lambda: len(staged(storage)) == 3 and staged(storage)[0] >= MORE_BYTES >> 1, "all three", seconds=30)
        api.process.kill()
        for connection in connections:
            connection.close()
    assert len(staged(storage)) == 3
    with transaction(sessions) as session:
        assert session.scalars(select(File)).all() == []
        assert usage.stored_bytes(session, project.id) == 0
    assert objects(storage, "files") == []
    let_it_be_long_ago(storage.staging)
    with running(settings, api_key) as api:
        assert staged(storage) == []
        assert api.client.get("/v1/files").json()["data"] == []
        seen = answered(api.client.get(by_parts))
        assert (seen["status"], seen["received_bytes"]) == ("pending", len(parts[0]))
        ids = [first["id"], api.add(by_parts, parts[1])["id"]]
        done = answered(api.client.post(f"{by_parts}/complete", json={"part_ids": ids}))
        assert done["file"]["sha256"] == hashlib.sha256(parts[0] + parts[1]).hexdigest()
        there = int(api.client.head(f"{as_stream}/content").headers["upload-offset"])
        assert there == MAX_PART_BYTES
        headers = {"Content-Range": f"bytes {there}-{len(data) - 1}/{len(data)}"}
        done = answered(api.client.put(f"{as_stream}/content", content=data[there:], headers=headers))
        assert done["file"]["sha256"] == hashlib.sha256(data).hexdigest()
    with transaction(sessions) as session:
        assert usage.stored_bytes(session, project.id) == len(data) + len(parts[0] + parts[1])


@pytest.mark.extended("kills the API once more, at the completion of an upload")
def test_a_kill_during_completion_leaves_a_pending_upload(
    settings: Settings, storage: LocalStorage, sessions: Sessions, api_key: str
) -> None:
    """Its lines are being checked by a child, which has nobody to tell of them any more and is stopped besides."""
    lines = b'{"a": 1}\n' * 100_000
    with running(settings, api_key) as api:
        upload = api.begin(lines, purpose="fine-tune")
        body = json.dumps({"part_ids": [api.add(upload, lines)["id"]]}).encode()
        with api.half("POST", f"{upload}/complete", {"Content-Type": "application/json"}, body, len(body)):
            until(lambda: limited_processes(api.process.pid), "the check of its lines", interval_seconds=0.005)
            child = psutil.Process(*limited_processes(api.process.pid))
            until(
                lambda: child.nice() > api.process.nice(),
                "its priority, which comes before the first line",
                interval_seconds=0.005,
            )
            child.suspend()
            api.process.kill()
            until(lambda: has_ended(child), "the child's end")
    with transaction(sessions) as session:
        assert session.scalars(select(File)).all() == []
    with running(settings, api_key) as api:
        assert answered(api.client.get(upload))["status"] == "pending"
        headers = {"Content-Type": "application/json"}
        done = answered(api.client.post(f"{upload}/complete", content=body, headers=headers))
        assert done["file"]["sha256"] == hashlib.sha256(lines).hexdigest()
        assert done["file"]["line_count"] == 100_000
        assert answered(api.client.get(upload)) == done
