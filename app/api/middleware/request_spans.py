"""Spans of requests, which FastAPI creates: their configuration, and the masking of what a log must not contain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.telemetry import TelemetryConfig
from starlette.types import Scope

from app.api.middleware.request_log import masked_path, masked_query

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider

NOT_TRACED = ("/healthz", "/readyz")  # probes every few seconds
OFF: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


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
