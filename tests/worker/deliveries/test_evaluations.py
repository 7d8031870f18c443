"""A delivery that an evaluation decides (`promote_if`), with a real evaluation of generated answers of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.db.deliveries import deliveries
from app.db.engine import transaction
from app.db.jobs import checkpoints
from app.db.tables import Job
from app.domain.evaluations.graders import CreateEvaluation
from app.services.jobs import evaluations as service
from tests.commands.trained import make_trained_job
from tests.factories import make_file
from tests.sentences import Reviewed
from tests.worker.deliveries.conftest import DeliveryHarness
from tests.worker.evaluations.test_evaluator import EXACT, evaluator, lines
from tests.worker.exports.test_exporter import write_real_adapter
from worker.deliveries.targets import EvaluationPending


@pytest.fixture
def evaluated(delivery: DeliveryHarness, tmp_path: Path) -> Job:
    """A job whose result is to be delivered, with a queued evaluation: the adapter is right, the base seldom."""
    target = delivery.target({"kind": "directory", "path": str(delivery.shared)})
    resources, project = delivery.harness.resources, delivery.harness.project
    with transaction(delivery.harness.sessions) as session:
        write = write_real_adapter(tmp_path / "base")
        job = make_trained_job(session, resources.storage, project, tmp_path / "made", write)
        result = checkpoints.by_names(session, [job.fine_tuned_model or ""])[job.fine_tuned_model or ""]
        deliveries.create(session, job, result, target)
        file = make_file(session, resources.storage, project, lines(), "evals", "heldout.jsonl")
        request = CreateEvaluation.model_validate(
            {"file": file.id, "graders": [EXACT], "promote_if": {"grader": "exact"}}
        )
        service.create(session, resources.hints, job, request, {})
    return job


def test_an_adapter_is_delivered_when_its_evaluation_has_allowed_that(
    delivery: DeliveryHarness, evaluated: Job, tmp_path: Path, reviewed: Reviewed
) -> None:
    for _ in range(12):  # more than the attempts of a delivery that fails
        delivery.attempt_due(again=True)
    row = delivery.delivery(evaluated)
    assert (row.state, row.tries) == ("pending", 0)
    reviewed(delivery.error(evaluated))
    assert row.next_attempt_at is not None
    waits = (row.next_attempt_at - row.updated_at).total_seconds()
    assert waits <= (EvaluationPending.uncounted_seconds or 0)
    assert sum("promote_if" in text for text in delivery.harness.messages(evaluated)) == 1
    assert list(delivery.shared.iterdir()) == []

    assert evaluator(delivery.harness, tmp_path).run_next()
    delivery.attempt_due(again=True)
    row = delivery.delivery(evaluated)
    assert (row.state, row.error) == ("delivered", None)
    assert (delivery.shared / (evaluated.fine_tuned_model or "")).exists()
