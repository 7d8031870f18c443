"""One log line per HTTP request, written when it is over. It holds no secret: see `masked_path` and `masked_query`."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from app.db.access.keys import PREFIX
from app.log import write_event

Outcome = Literal["completed", "client_disconnected", "request_timeout", "invalid_request", "aborted"]

API_KEY = re.compile(rf"{PREFIX}_[\w-]*", re.IGNORECASE)
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
PARAMETER_NAME = re.compile(r"[\w.\[\]-]{1,80}")
CREDENTIAL_HEADERS = (b"authorization", b"api-key")
MASK = "***"
MAX_TEXT = 1_000  # characters of a path or a query
MAX_METHOD = 32  # and of a method, which a client may invent
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a request whose client left before it was answered


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request so far. In `scope["state"]`, so that every layer can add to it."""

    request_id: str
    began: float = field(default_factory=time.perf_counter)
    ended: float | None = None  # when the last byte of the response was handed to the server
    status: int | None = None
    bytes_in: int = 0  # of the body
    bytes_out: int = 0  # of the body
    route: str | None = None  # the path of the route, with names in place of ids
    key_id: str | None = None
    project_id: str | None = None
    outcome: Outcome | None = None

    def end(self, outcome: Outcome, status: int) -> None:
        """Set how the request ended, unless that is known already; `status` is for one without a response."""
        if self.outcome is None:
            self.outcome = outcome
            self.status = self.status or status


def start_record(scope: Mapping[str, Any]) -> RequestRecord:
    """The record of a request, made by whoever needs it first: `Envelope`, or the connection that refuses its body."""
    record: RequestRecord = scope["state"].setdefault("record", RequestRecord(request_id_of(scope["headers"])))
    return record


def record_of(scope: Mapping[str, Any]) -> RequestRecord | None:
    """The record of a request that was started; None where `Envelope` does not stand around the caller."""
    record: RequestRecord | None = scope.get("state", {}).get("record")
    return record


def log_request(scope: Mapping[str, Any], record: RequestRecord) -> None:
    """Write the line of one request; `scope` holds less of a request that no application saw."""
    if record.outcome is None:
        record.outcome = "aborted" if record.ended is None else "completed"
    ended = time.perf_counter() if record.ended is None else record.ended
    client = scope.get("client")
    has_failed = record.outcome == "aborted" or (record.status or 0) >= 500
    write_event(
        "error" if has_failed else "info",
        "request",
        request_id=record.request_id,
        method=masked_path(scope["method"])[:MAX_METHOD] if "method" in scope else None,
        route=record.route,
        path=masked_path(scope["path"]) if "path" in scope else None,
        query=masked_query(scope.get("query_string", b"")),
        status=record.status,
        outcome=record.outcome,
        duration_ms=round((ended - record.began) * 1000, 1),
        key_id=record.key_id,
        project_id=record.project_id,
        bytes_in=record.bytes_in,
        bytes_out=0 if scope.get("method") == "HEAD" else record.bytes_out,
        address=client[0] if client else None,
    )


def request_id_of(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The client's X-Request-Id if it may stand in a log line, else a new one."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    if REQUEST_ID.fullmatch(given) and not _is_credential(given, headers):
        return given.decode()
    return f"req_{secrets.token_hex(16)}"


def masked_path(path: str) -> str:
    """The path with its ids, and without API keys that were put there by mistake."""
    return API_KEY.sub(MASK, path)[:MAX_TEXT]


def masked_query(query: bytes) -> str:
    """The names of a query's parameters; every value is masked, and so is what is no plausible name."""
    if not query:
        return ""
    return "&".join(_masked_parameter(each) for each in query.decode("latin-1").split("&"))[:MAX_TEXT]


def _masked_parameter(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    name = unquote(name)
    is_name = bool(equals) and PARAMETER_NAME.fullmatch(name) is not None and API_KEY.search(name) is None
    return f"{name}={MASK}" if is_name else MASK


def _is_credential(value: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """A client that sends its key as the request id, too, would have it logged and sent back."""
    return API_KEY.search(value.decode()) is not None or any(
        name in CREDENTIAL_HEADERS and value == given.rpartition(b" ")[2] for name, given in headers
    )
