"""One trace has every attempt of a job: training, exports, evaluations, deliveries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import update

from app.db.engine import transaction
from app.db.tables import Job
from app.domain.artifacts.exports import ExportType
from app.domain.evaluations.graders import CreateEvaluation
from app.services.jobs import evaluations, exports
from app.telemetry import tracing
from tests.factories import make_file
from tests.worker.deliveries.conftest import DeliveryHarness
from tests.worker.fake_trainer import TrainerPlan
from worker.evaluations.evaluator import Evaluator
from worker.exports import Exporter
from worker.node.slot import try_lock

TRACE_ID, REQUEST_SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FAILS = (sys.executable, "-c", "raise SystemExit(3)")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The ended spans of this process."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def traced_job(delivery: DeliveryHarness) -> Job:
    """A job whose request had a span, and which ran."""
    with transaction(delivery.harness.sessions) as session:
        job = delivery.harness.create_queued_job()
        traceparent = f"00-{TRACE_ID}-{REQUEST_SPAN_ID}-01"
        values = {"traceparent": traceparent, "request_id": "nightly-7", "deliver_to": ["production"]}
        session.execute(update(Job).where(Job.id == job.id).values(**values))
    delivery.harness.run_next_job(TrainerPlan(steps=1))
    return delivery.harness.job(job)


def export_and_evaluate(delivery: DeliveryHarness, job: Job, tmp_path: Path) -> None:
    """Both fail: their adapter was trained on other files of the base model."""
    resources = delivery.harness.resources
    with transaction(delivery.harness.sessions) as session:
        exports.create(session, resources.hints, job, {"type": "merged"})
        file = make_file(session, resources.storage, delivery.harness.project, purpose="evals")
        request = CreateEvaluation.model_validate({"file": file.id})
        evaluations.create(session, resources.hints, job, request, [])
    commands = dict.fromkeys(ExportType, FAILS)
    assert Exporter(resources, "export@test", tmp_path / "merge.lock", commands=commands).run_next()
    device = tmp_path / "device.lock"
    assert Evaluator(resources, "gpu@test", lambda: try_lock(device), generate_command=FAILS).run_next()


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    return {key.removeprefix("tunery."): value for key, value in (span.attributes or {}).items()}


def test_every_attempt_of_a_job_belongs_to_the_trace_of_its_request(
    delivery: DeliveryHarness, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    delivery.target({"kind": "directory", "path": str(delivery.shared)})
    job = traced_job(delivery)
    export_and_evaluate(delivery, job, tmp_path)
    delivery.attempt_due()
    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"train attempt", "export attempt", "evaluate attempt", "deliver attempt"}
    assert {f"{span.context.trace_id:032x}" for span in found.values() if span.context} == {TRACE_ID}
    assert {f"{span.parent.span_id:016x}" for span in found.values() if span.parent} == {REQUEST_SPAN_ID}
    assert all(span.parent for span in found.values())
    ended = {name: (attributes_of(span)["attempt.reason"], span.status.is_ok) for name, span in found.items()}
    assert ended == {
        "train attempt": ("done", True),
        "export attempt": ("model_unavailable", False),
        "evaluate attempt": ("model_unavailable", False),
        "deliver attempt": ("delivered", True),
    }
    assert {attributes_of(span)["request_id"] for span in found.values()} == {"nightly-7"}
    assert attributes_of(found["deliver attempt"])["delivery"] == delivery.delivery(job).id
    assert attributes_of(found["train attempt"])["job"] == job.id
