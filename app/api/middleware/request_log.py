"""What operators see of HTTP requests: one log line per request, written at its end, metrics by the template of its
route, and spans.

The log line contains no secret: see `masked_path` and `masked_query`. Spans are created by FastAPI; here is their
configuration, and the masking of what a log must not contain.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import unquote

from fastapi.telemetry import TelemetryConfig
from prometheus_client import Counter, Histogram
from starlette.types import Scope

from app.domain.access.api_keys import PREFIX
from app.log import write_event
from app.telemetry import metrics

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider

Outcome = Literal["completed", "client_disconnected", "request_timeout", "aborted"]

API_KEY = re.compile(rf"{PREFIX}_[\w-]*", re.IGNORECASE)
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
PARAMETER_NAME = re.compile(r"[\w.\[\]-]{1,80}")
CREDENTIAL_HEADERS = (b"authorization", b"api-key")
MASK = "***"
MAX_TEXT_CHARS = 1_000  # of a path or a query
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that disconnected before the response
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
FAILURES = ("500", "503")  # counted from 0 from a route's first request on, so that alerts see the first of them
UNKNOWN = "unknown"  # no route matched, or a method that no client should send: both would create endless series
NOT_TRACED = ("/healthz", "/readyz")  # probes every few seconds
OFF: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


@dataclass(slots=True)
class RequestRecord:
    """The data of the log line. It is kept in `scope["state"]`, so that every layer can add to it."""

    request_id: str
    method: str
    path: str  # as the client sent it
    query: bytes
    address: (
        str | None
    )  # of the client; behind a proxy the forwarded one, if the server trusts it (FORWARDED_ALLOW_IPS)
    started_at: float = field(default_factory=time.perf_counter)
    ended_at: float | None = None  # when the last byte of the response was passed to the server
    status: int | None = None
    bytes_in: int = 0  # of the body
    bytes_out: int = 0  # of the body
    route: str | None = None  # the path of the route, with names in place of ids
    key_id: str | None = None
    project_id: str | None = None
    outcome: Outcome | None = None
    response_headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # of the response, also of an error

    @classmethod
    def of_scope(cls, scope: Scope, headers: Mapping[bytes, bytes]) -> Self:
        client = scope.get("client")
        address = str(client[0]) if client else None
        return cls(request_id_of(headers), scope["method"], scope["path"], scope["query_string"], address)

    @property
    def duration_seconds(self) -> float:
        """The time until the response was complete; until now if it was not."""
        return (time.perf_counter() if self.ended_at is None else self.ended_at) - self.started_at

    def end(self, outcome: Outcome, status: int) -> None:
        """Set the outcome, unless one is set already; `status` applies without a response."""
        if self.outcome is None:
            self.outcome = outcome
            self.status = self.status or status


def record_of(scope: Mapping[str, Any]) -> RequestRecord:
    record: RequestRecord = scope["state"]["record"]
    return record


def end_request(record: RequestRecord) -> None:
    """Write the line of a request, and count it."""
    if record.outcome is None:
        record.outcome = "aborted" if record.ended_at is None else "completed"
    has_failed = record.outcome == "aborted" or (record.status or 0) >= 500
    if record.method == "HEAD":
        record.bytes_out = 0
    seconds = record.duration_seconds
    write_event(
        "error" if has_failed else "info",
        "request",
        request_id=record.request_id,
        method=record.method,
        route=record.route,
        path=masked_path(record.path),
        query=masked_query(record.query),
        status=record.status,
        outcome=record.outcome,
        duration_ms=round(seconds * 1000, 1),
        key_id=record.key_id,
        project_id=record.project_id,
        bytes_in=record.bytes_in,
        bytes_out=record.bytes_out,
        address=record.address,
    )
    method = record.method if record.method in METHODS else UNKNOWN
    count, duration = _series(method, record.route or UNKNOWN, str(record.status or UNKNOWN))
    count.inc()
    duration.observe(seconds)
    if record.bytes_in:
        metrics.RECEIVED_BYTES.inc(record.bytes_in)
    if record.bytes_out:
        metrics.SENT_BYTES.inc(record.bytes_out)


def masked_path(path: str) -> str:
    """The path with its ids, and without API keys that a client put there by mistake."""
    return API_KEY.sub(MASK, path)[:MAX_TEXT_CHARS]


def masked_query(query: bytes) -> str:
    """The names of the query's parameters; values and implausible names are masked."""
    if not query:
        return ""
    return "&".join(_masked_parameter(parameter) for parameter in query.decode("latin-1").split("&"))[:MAX_TEXT_CHARS]


def _masked_parameter(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    name = unquote(name)
    is_name = bool(equals) and PARAMETER_NAME.fullmatch(name) is not None and API_KEY.search(name) is None
    return f"{name}={MASK}" if is_name else MASK


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The client's X-Request-Id if it is safe to log, else a new id.

    A client may send its key as the request id, which is logged and returned.
    """
    given = headers.get(b"x-request-id", b"")
    keys = [headers.get(name, b"").rpartition(b" ")[2] for name in CREDENTIAL_HEADERS]
    if REQUEST_ID.fullmatch(given) and not API_KEY.search(given.decode()) and given not in keys:
        return given.decode()
    return f"req_{secrets.token_hex(16)}"


@lru_cache(maxsize=4096)  # there are a few hundred combinations; the lookup by labels takes half of the time
def _series(method: str, route: str, status: str) -> tuple[Counter, Histogram]:
    metrics.begin(metrics.REQUESTS, [method], [route], FAILURES)
    return metrics.REQUESTS.labels(method, route, status), metrics.REQUEST_SECONDS.labels(method, route)


def telemetry_config(provider: TracerProvider | None) -> TelemetryConfig:
    """FastAPI's own telemetry: one span for each request, and nothing else, as metrics and logs are the project's."""
    if provider is None:
        return OFF
    provider.add_span_processor(_processor())
    return {
        **OFF,
        "tracing": True,
        "tracer_provider": provider,
        "operation_spans": False,
        "exclude": _is_probe,
    }


def _is_probe(scope: Scope) -> bool:
    return scope.get("path") in NOT_TRACED


def _processor() -> SpanProcessor:
    from opentelemetry.sdk.trace import SpanProcessor

    class MaskUrls(SpanProcessor):
        """Masks the URL in the span as in the log line, before any exporter sees it."""

        def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
            attributes = span.attributes or {}
            if "url.path" in attributes:
                span.set_attribute("url.path", masked_path(str(attributes["url.path"])))
            if "url.query" in attributes:
                span.set_attribute("url.query", masked_query(str(attributes["url.query"]).encode()))

    return MaskUrls()
