"""Metrics of HTTP requests, by the template of their route."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from prometheus_client import Counter, Histogram

from app.api.middleware.request_log import RequestRecord
from app.telemetry import metrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
FAILURES = ("500", "503")  # counted from 0 from a route's first request on, so that alerts see the first of them
UNKNOWN = "unknown"  # no route matched, or a method that no client should send: both would create endless series


def observe_request(scope: Mapping[str, Any], record: RequestRecord) -> None:
    """Count one ended request; `record.ended_at` is its end. `scope` may lack a method, as in `log_request`."""
    method = scope.get("method", UNKNOWN)
    requests, seconds = _series(
        method if method in METHODS else UNKNOWN, record.route or UNKNOWN, str(record.status or UNKNOWN)
    )
    requests.inc()
    seconds.observe(record.duration_seconds)
    if record.bytes_in:
        metrics.RECEIVED_BYTES.inc(record.bytes_in)
    if record.bytes_out:
        metrics.SENT_BYTES.inc(record.bytes_out)


@lru_cache(maxsize=4096)  # there are a few hundred combinations; the lookup by labels takes half of the time
def _series(method: str, route: str, status: str) -> tuple[Counter, Histogram]:
    metrics.begin(metrics.REQUESTS, [method], [route], FAILURES)
    return metrics.REQUESTS.labels(method, route, status), metrics.REQUEST_SECONDS.labels(method, route)
