"""Traces from a request to the attempts of its job, as an OpenTelemetry collector receives them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.jobs import claims
from app.db.tables import Project
from app.main import create_app
from app.settings import Settings
from app.storage import LocalStorage
from app.telemetry.tracing import TracingNotInstalled, configure_tracing
from tests.factories import WORKER, make_file, make_succeeded_job, make_target
from tests.receiver import Receiver, receiving
from worker.jobs.lease import JobAttempt, observed_attempt
from worker.node.resources import Resources

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def collector() -> Iterator[Receiver]:
    """An OTLP collector."""
    with receiving() as receiver:
        yield receiver


def spans_of(collector: Receiver) -> list[Span]:
    """The spans that were posted to it."""
    requests = [ExportTraceServiceRequest.FromString(each.body) for each in collector.received]
    scopes = [scope for each in requests for resource in each.resource_spans for scope in resource.scope_spans]
    return [span for scope in scopes for span in scope.spans]


@pytest.fixture(scope="module")
def tracer_provider(collector: Receiver) -> Iterator[object]:
    """The provider of this test process; OpenTelemetry allows one."""
    settings = Settings(database_url="postgresql://nowhere/x", redis_url="redis://nowhere", otlp_endpoint=collector.url)
    provider = configure_tracing(settings, "test")
    assert provider is not None
    yield provider
    provider.shutdown()


def attributes_of(span: Span) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


def test_an_attempt_belongs_to_the_trace_of_the_request_that_created_its_job(
    settings: Settings,
    storage: LocalStorage,
    sessions: Sessions,
    project: Project,
    base_model: str,
    api_key: str,
    resources: Resources,
    collector: Receiver,
    tracer_provider,
) -> None:
    collector.received.clear()
    with transaction(sessions) as session:
        file_id = make_file(session, storage, project).id
    headers = {"Authorization": f"Bearer {api_key}", "traceparent": TRACEPARENT, "X-Request-Id": "nightly-7"}
    with TestClient(create_app(settings, storage, tracer_provider=tracer_provider), headers=headers) as client:
        client.get("/healthz")
        created = client.post("/v1/fine_tuning/jobs", json={"model": base_model, "training_file": file_id})
        client.get("/v1/models?after=secret-value")
    job_id = created.json()["id"]
    with transaction(sessions) as session:
        job = claims.claim(session, "validate", WORKER, 300)
        assert job is not None
        assert (job.id, job.request_id) == (job_id, "nightly-7")
    keeper = JobAttempt(resources, job, 0)
    with observed_attempt("validate", keeper, job):
        keeper.outcome = "invalid_training_file"
    tracer_provider.force_flush()

    spans = {span.name: span for span in spans_of(collector)}
    assert set(spans) == {"POST /v1/fine_tuning/jobs", "GET /v1/models", "validate attempt"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE_ID}
    request, attempt = spans["POST /v1/fine_tuning/jobs"], spans["validate attempt"]
    assert attempt.parent_span_id == request.span_id
    assert attributes_of(request)["tunery.request_id"] == "nightly-7"
    assert attributes_of(attempt)["tunery.job"] == job_id
    assert attributes_of(attempt)["tunery.attempt.reason"] == "invalid_training_file"
    assert attempt.status.code == attempt.status.STATUS_CODE_ERROR
    assert attributes_of(spans["GET /v1/models"])["url.query"] == "after=***"


@pytest.mark.usefixtures("base_model")
def test_a_later_request_for_a_finished_job_is_linked_to_the_jobs_trace(
    settings: Settings,
    storage: LocalStorage,
    sessions: Sessions,
    project: Project,
    api_key: str,
    collector: Receiver,
    tracer_provider,
) -> None:
    collector.received.clear()
    with transaction(sessions) as session:
        job = make_succeeded_job(session, storage, project)
        job.traceparent = TRACEPARENT
        make_target(session, project.id)
        rows = make_file(session, storage, project).id
    headers = {"Authorization": f"Bearer {api_key}"}
    bodies = {"exports": {"type": "merged"}, "evaluations": {"file": rows}, "deliveries": {"target": "production"}}
    with TestClient(create_app(settings, storage, tracer_provider=tracer_provider), headers=headers) as client:
        responses = [client.post(f"/v1/fine_tuning/jobs/{job.id}/{name}", json=body) for name, body in bodies.items()]
    assert [response.status_code for response in responses] == [200, 200, 200], [each.text for each in responses]
    tracer_provider.force_flush()
    assert [[link.trace_id.hex() for link in span.links] for span in spans_of(collector)] == [[TRACE_ID]] * 3
    assert TRACE_ID not in {span.trace_id.hex() for span in spans_of(collector)}


def test_without_an_endpoint_nothing_is_traced(settings: Settings) -> None:
    assert configure_tracing(settings, "api") is None


def test_without_the_packages_the_start_says_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingNotInstalled, match=r"\.\[tracing\]"):
        configure_tracing(settings.model_copy(update={"otlp_endpoint": "http://127.0.0.1:1"}), "api")
