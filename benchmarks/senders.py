"""Three ways to send a file, on plain sockets, so that the client costs as little as it can."""

from __future__ import annotations

import http.client
import json

from app.domain.uploads import MAX_PART_BYTES
from benchmarks.served import HOST, Service


def send_multipart(service: Service, purpose: str, block: bytes, megabytes: int) -> None:
    fields = f'--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
    send_form(service, "/v1/files", fields, "file", block, megabytes)


def send_parts(service: Service, purpose: str, block: bytes, megabytes: int) -> None:
    upload_id = begin(service, purpose, megabytes)
    step = MAX_PART_BYTES >> 20
    sizes = [min(step, megabytes - start) for start in range(0, megabytes, step)]
    path = f"/v1/uploads/{upload_id}"
    ids = [send_form(service, f"{path}/parts", "", "data", block, size)["id"] for size in sizes]
    done = ask(service, "POST", f"{path}/complete", json.dumps({"part_ids": ids}).encode())
    assert done["status"] == "completed", done


def send_content(service: Service, purpose: str, block: bytes, megabytes: int) -> None:
    path = f"/v1/uploads/{begin(service, purpose, megabytes)}/content"
    done = stream(service, "PUT", path, {}, b"", block, megabytes, b"")
    assert done["status"] == "completed", done


def begin(service: Service, purpose: str, megabytes: int) -> str:
    body = {"filename": "a.jsonl", "purpose": purpose, "bytes": megabytes << 20, "mime_type": "text/plain"}
    return str(ask(service, "POST", "/v1/uploads", json.dumps(body).encode())["id"])


def send_form(service: Service, path: str, fields: str, name: str, block: bytes, megabytes: int) -> dict[str, str]:
    head = f'{fields}--XX\r\nContent-Disposition: form-data; name="{name}"; filename="a.jsonl"\r\n\r\n'.encode()
    headers = {"Content-Type": "multipart/form-data; boundary=XX"}
    return stream(service, "POST", path, headers, head, block, megabytes, b"\r\n--XX--\r\n")


def stream(
    service: Service, method: str, path: str, headers: dict[str, str], head: bytes, block: bytes, megabytes: int,
    tail: bytes,
) -> dict[str, str]:  # fmt: skip
    connection = http.client.HTTPConnection(HOST, service.port, timeout=600)
    connection.putrequest(method, path)
    length = len(head) + megabytes * len(block) + len(tail)
    for name, value in (service.headers | headers | {"Content-Length": str(length)}).items():
        connection.putheader(name, value)
    connection.endheaders(head)
    for _ in range(megabytes):
        connection.send(block)
    connection.send(tail)
    return answer_of(connection)


def ask(service: Service, method: str, path: str, body: bytes) -> dict[str, str]:
    connection = http.client.HTTPConnection(HOST, service.port, timeout=600)
    connection.request(method, path, body, service.headers | {"Content-Type": "application/json"})
    return answer_of(connection)


def answer_of(connection: http.client.HTTPConnection) -> dict[str, str]:
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, text
    return dict(json.loads(text))
