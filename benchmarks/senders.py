"""Three methods to upload a file, on plain sockets, so that the client has little overhead."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any

from app.domain.files import MAX_PART_BYTES
from benchmarks.served import HOST, Service

MB = 1 << 20
BOUNDARY = "9b3f6c1d4a7e4f0f8f2d5b6a7c8e9d01"  # as long as those of the official client
Json = dict[str, Any]
Blocks = Callable[[int, int], Iterator[bytes | memoryview]]
"""`blocks(first, count)`: so many megabytes of a file from the megabyte `first` on, in any pieces."""


def same(block: bytes) -> Blocks:
    """A file that repeats one megabyte."""
    return lambda _first, count: (block for _ in range(count))


def numbered(block: bytes) -> Blocks:
    """A file whose megabytes begin with their numbers, so that all differ."""

    def pieces(first: int, count: int) -> Iterator[bytes | memoryview]:
        rest = memoryview(block)[8:]
        for number in range(first, first + count):
            yield number.to_bytes(8)
            yield rest

    return pieces


def send_multipart(service: Service, purpose: str, blocks: Blocks, megabytes: int) -> Json:
    fields = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
    return send_form(service, "/v1/files", fields, "file", blocks(0, megabytes), megabytes)


def send_parts(service: Service, purpose: str, blocks: Blocks, megabytes: int) -> Json:
    path = f"/v1/uploads/{begin(service, purpose, megabytes)}"
    step = MAX_PART_BYTES // MB
    ids = []
    for first in range(0, megabytes, step):
        count = min(step, megabytes - first)
        ids.append(send_form(service, f"{path}/parts", "", "data", blocks(first, count), count)["id"])
    return file_of(ask(service, "POST", f"{path}/complete", json.dumps({"part_ids": ids}).encode()))


def send_content(service: Service, purpose: str, blocks: Blocks, megabytes: int) -> Json:
    path = f"/v1/uploads/{begin(service, purpose, megabytes)}/content"
    return file_of(stream(service, "PUT", path, {}, b"", blocks(0, megabytes), megabytes, b""))


def begin(service: Service, purpose: str, megabytes: int) -> str:
    body = {"filename": "a.jsonl", "purpose": purpose, "bytes": megabytes * MB, "mime_type": "text/plain"}
    return str(ask(service, "POST", "/v1/uploads", json.dumps(body).encode())["id"])


def send_form(
    service: Service, path: str, fields: str, name: str, pieces: Iterator[bytes | memoryview], megabytes: int
) -> Json:
    head = f'{fields}--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="a.jsonl"\r\n\r\n'.encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return stream(service, "POST", path, headers, head, pieces, megabytes, f"\r\n--{BOUNDARY}--\r\n".encode())


def stream(
    service: Service, method: str, path: str, headers: dict[str, str], head: bytes,
    pieces: Iterator[bytes | memoryview], megabytes: int, tail: bytes,
) -> Json:  # fmt: skip
    connection = http.client.HTTPConnection(HOST, service.port, timeout=600)
    connection.putrequest(method, path)
    length = len(head) + megabytes * MB + len(tail)
    for name, value in (service.headers | headers | {"Content-Length": str(length)}).items():
        connection.putheader(name, value)
    connection.endheaders(head)
    for piece in pieces:
        connection.send(piece)
    connection.send(tail)
    return answer_of(connection)


def ask(service: Service, method: str, path: str, body: bytes) -> Json:
    connection = http.client.HTTPConnection(HOST, service.port, timeout=600)
    connection.request(method, path, body, service.headers | {"Content-Type": "application/json"})
    return answer_of(connection)


def answer_of(connection: http.client.HTTPConnection) -> Json:
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, text
    return dict(json.loads(text))


def file_of(upload: Json) -> Json:
    assert upload["status"] == "completed", upload
    return dict(upload["file"])
