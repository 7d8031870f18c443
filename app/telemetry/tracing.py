"""Traces for OpenTelemetry: one span for a request, and one for each attempt of the job that it created.

Traces are off without TUNERY_OTLP_ENDPOINT. They need the packages of the extra `tracing`; opentelemetry-api, which
this module imports, is a dependency of FastAPI. A job stores the `traceparent` of its request (W3C Trace Context), so
an attempt on another host, days later, belongs to the same trace.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.settings import Settings
from app.telemetry.metrics import own_version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

TRACEPARENT = "traceparent"
TRACES_PATH = "/v1/traces"
INSTALL = (
    "TUNERY_OTLP_ENDPOINT needs OpenTelemetry's SDK: run pip install '.[tracing]' in a checkout of Tunery, or unset "
    "the variable."
)

_propagator = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("tunery")  # of the global provider, which `configure_tracing` sets


class TracingNotInstalled(RuntimeError):
    """The setting asks for traces, and the packages for them are not installed."""


def configure_tracing(settings: Settings, process: str) -> TracerProvider | None:
    """Export the spans of this process if the settings name a collector. Raises TracingNotInstalled.

    The provider exports from a thread and drops spans while the collector is unreachable. It must be shut down at the
    end, which sends the last spans.
    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingNotInstalled(INSTALL) from error
    attributes = {
        "service.name": "tunery",
        "service.version": own_version(),
        "service.instance.id": f"{process}@{socket.gethostname()}",
    }
    provider = TracerProvider(resource=Resource.create(attributes))
    endpoint = settings.otlp_endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    return provider


def current_traceparent() -> str | None:
    """The current span as a header of W3C Trace Context; None without one."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get(TRACEPARENT)


def link_to(traceparent: str | None) -> None:
    """Link the current span to the trace of a job, which has the attempts that this request causes."""
    if traceparent:
        linked = trace.get_current_span(_propagator.extract({TRACEPARENT: traceparent}))
        trace.get_current_span().add_link(linked.get_span_context())


@contextmanager
def span(name: str, traceparent: str | None, attributes: Mapping[str, str | int]) -> Iterator[Span]:
    """A span that lasts as long as the block, as a child of `traceparent` if that is given."""
    parent = _propagator.extract({TRACEPARENT: traceparent}) if traceparent else None
    with _tracer.start_as_current_span(name, context=parent, attributes=dict(attributes)) as started:
        yield started


def end_reason(current: Span, reason: str, is_error: bool) -> None:
    """Add the reason for which an attempt ended."""
    current.set_attribute("tunery.attempt.reason", reason)
    if is_error:
        current.set_status(StatusCode.ERROR, reason)
