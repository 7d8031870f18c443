"""The evaluation that a job is created with: its file is checked first, and it is queued with the success."""

from __future__ import annotations

from app.db.engine import transaction
from app.db.jobs import evaluations
from app.db.tables import Job
from tests.factories import make_file
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness
from worker.validation import Validator

GRADER = {"type": "label_accuracy", "name": "label", "reference": "{{ item.label }}"}


def request(harness: WorkerHarness, content: bytes) -> dict[str, object]:
    with transaction(harness.sessions) as session:
        file = make_file(session, harness.resources.storage, harness.project, content, "evals", line_count=None)
    return {"evaluation": {"file": file.id, "graders": [GRADER], "promote_if": {"grader": "label"}}}


def test_the_evaluation_of_a_job_is_queued_in_the_transaction_of_its_success(harness: WorkerHarness) -> None:
    job = harness.create_queued_job(body=request(harness, b'{"prompt": "a", "label": "b"}\n'))
    assert harness.run_next_job(TrainerPlan())
    done = harness.job(job)
    assert (done.state, done.error_message) == ("succeeded", None)
    assert done.evaluation is not None
    assert done.evaluation["status"] == "queued"
    with transaction(harness.sessions) as session:
        assert evaluations.verdict_on_delivery(session, done).is_allowed is None
        held = evaluations.claim(session, "gpu0@a#1", 60)
        assert held is not None
        assert (held.job_id, held.model) == (job.id, done.fine_tuned_model)


def test_an_invalid_file_fails_the_job_before_it_is_trained(harness: WorkerHarness) -> None:
    job: Job = harness.create_job(body=request(harness, b'{"prompt": "a"}\n'))
    assert Validator(harness.resources, "cpu0@a#1").run_next()
    failed = harness.job(job)
    assert (failed.state, failed.error_code, failed.error_param) == (
        "failed", "invalid_evaluation_file", "evaluation.file"
    )  # fmt: skip
    assert "item.label" in str(failed.error_message)
