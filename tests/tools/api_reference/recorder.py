"""Records requests with their responses, and replaces what differs in each recording: ids, times, digests, secrets."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx2

from app.api.openapi.request_examples import FILE_NAME, PARAMETER
from tests.deadline import until

JSON, STREAM = "application/json", "text/event-stream"
ANY_TYPE = "GET /v1/files/{file_id}/content"  # has the media type of the file
MAX_TEXT = 400  # characters of a response that is no JSON
ENDED = ("succeeded", "failed", "cancelled", "refused", "delivered")


class Recorder:
    """Sends requests, and keeps each operation with its latest request and all its responses."""

    def __init__(self, http: httpx2.Client) -> None:
        self.http, self.recorded = http, dict[str, Any]()

    def __call__(self, operation: str, request: Any = None, /, **given: Any) -> Any:
        """Send a request and record it. `given` are parameters of the path, and of the query as `query`."""
        query, headers = given.pop("query", {}), given.pop("headers", {})
        body: dict[str, Any] = {} if request is None else {"json": request}
        return self._send(operation, given, query, request, {"headers": headers} | body)

    def upload(self, operation: str, field: str, content: bytes, /, **given: str) -> Any:
        """Send a form with a file and record it; `given` are path parameters and the other fields."""
        path = {name: given.pop(name) for name in PARAMETER.findall(operation)}
        body = {"files": {field: (FILE_NAME, content)}, "data": given}
        return self._send(operation, path, {}, given | {field: content.decode()[:MAX_TEXT]}, body)

    def put(self, operation: str, content: bytes, **path: str) -> Any:
        body = {"content": content, "headers": {"Content-Type": "application/octet-stream"}}
        return self._send(operation, path, {}, content.decode()[:MAX_TEXT], body)

    def _send(self, operation: str, path: dict[str, str], query: dict[str, Any], shown: Any, body: Any) -> Any:
        method, template = operation.split(" ")
        url = PARAMETER.sub(lambda match: quote(path[match[1]], safe=":"), template)
        flat = {(f"{key}[{inner}]" if inner else key): value for key, inner, value in _pairs(query)}
        with self.http.stream(method, url, params=flat, **body) as response:
            media_type = response.headers.get("content-type", "").split(";")[0]
            ends = template != "/v1/events/stream"
            text = response.read() if ends else next(part for part in response.iter_bytes() if b"data:" in part)
        assert response.status_code < 300, f"{operation}: {text!r}"
        is_json = media_type == JSON and operation != ANY_TYPE
        value = json.loads(text) if is_json else _events(text) if media_type == STREAM else _shown(text)
        entry = self.recorded.setdefault(operation, {"responses": {}})
        if path or query:
            entry.setdefault("parameters", path | query)
        if shown is not None:
            entry.setdefault("request", shown)
        kind = "*/*" if operation == ANY_TYPE else media_type
        entry["responses"][f"{response.status_code} {kind}"] = value
        return value

    def wait(self, url: str, is_reached: Callable[[Any], bool] = lambda body: body["status"] in ENDED) -> Any:
        """Read an object until its state is reached."""
        read = lambda: self.http.get(url).raise_for_status().json()  # noqa: E731
        until(lambda: is_reached(read()), f"the end of {url}", 600, interval_seconds=1.0)
        return read()


def _pairs(query: dict[str, Any]) -> list[tuple[str, str | None, Any]]:
    return [
        (key, inner, each)
        for key, value in query.items()
        for inner, each in (value.items() if isinstance(value, dict) else [(None, value)])
    ]


def _events(content: bytes) -> str:
    """The first two and the last server-sent event."""
    events = content.decode().strip().split("\n\n")
    return "".join(f"{event}\n\n" for event in dict.fromkeys([*events[:2], events[-1]]))


def _shown(content: bytes) -> str:
    return "".join(char for char in content[:MAX_TEXT].decode("utf-8", "ignore") if char.isprintable() or char == "\n")


START = 1_795_000_000
SECONDS_AFTER_START = {"created_at": 0, "created": 0, "started_at": 60, "finished_at": 180}
ID = re.compile(r"\b([a-z]+[-_]|[cg]pu0-|tunery:demo:|#)([0-9a-f]{6,32})\b")
EPOCH_SECONDS = re.compile(r"\b1[7-9]\d{8}\b")  # in the text of a stream
FIXED = {
    "signing_secret_hint": "whsec_...Zpc=",
    "redacted_value": "tnry_0f1e…Wja4",
    "fingerprint": "490a94d0",
    "pid": 4242,
}
DIGEST = re.compile(r"\b(?:[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})\b")
SECRETS = ((re.compile(r"tnry_[\w-]{20,}"), "tnry_..."), (re.compile(r"whsec_[\w+/=]{20,}"), "whsec_..."))


def stable(recorded: Any, replaced: dict[str, str]) -> Any:
    """The same record with ids, digests, secrets, addresses and times that every recording has."""
    text = json.dumps(recorded, ensure_ascii=False)
    for old, new in replaced.items():
        text = text.replace(old, new)
    for pattern, secret in SECRETS:
        text = pattern.sub(secret, text)
    replacements: dict[str, dict[str, str]] = defaultdict(dict)  # by kind, so that one more id changes few others

    def digits(kind: str, old: str) -> str:
        of_kind = replacements[kind]
        return of_kind.setdefault(old, hashlib.sha256(f"{kind} {len(of_kind)}".encode()).hexdigest()[: len(old)])

    text = ID.sub(lambda match: match[1] + digits(match[1], match[2]), text)
    text = DIGEST.sub(lambda match: digits("digest", match[0]), text)
    return _stable_value(json.loads(text), "")


def _stable_value(value: Any, key: str) -> Any:
    if key in FIXED:
        return FIXED[key]
    if isinstance(value, dict):
        return {name: _stable_value(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_stable_value(inner, key) for inner in value]
    if isinstance(value, str):
        return EPOCH_SECONDS.sub(str(START), value)
    if isinstance(value, int) and abs(value - time.time()) < 366 * 86_400 and key != "imported_at":
        return START + (SECONDS_AFTER_START.get(key, 300) if value < time.time() + 600 else 86_400)
    return value
