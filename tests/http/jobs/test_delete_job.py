"""DELETE /v1/fine_tuning/jobs/{job_id}, and the jobs that use a file."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.jobs import checkpoints, evaluations, exports
from app.db.tables import Evaluation, Export, File, Job, Project
from app.domain.artifacts.exports import ExportKind, ExportType
from app.domain.evaluations.graders import EvaluationSettings
from app.storage import LocalStorage
from tests.api_objects import error_of
from tests.factories import make_file, make_job, make_succeeded_job

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def succeeded(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> Job:
    """With an export and an evaluation that wait."""
    with transaction(sessions) as session:
        job = make_succeeded_job(session, storage, project)
        (result, *_) = checkpoints.kept(session, job.id)
        assert exports.insert(session, job, result, ExportKind(ExportType.MERGED), 1) is not None
        evaluations.insert(session, job, result, session.get_one(File, job.training_file_id), EvaluationSettings())
        return job


def test_a_deleted_job_is_gone_with_all_that_it_made(client: TestClient, succeeded: Job, sessions: Sessions) -> None:
    answer = client.delete(f"{JOBS}/{succeeded.id}")
    assert answer.json() == {"id": succeeded.id, "object": "fine_tuning.job", "deleted": True}
    for path in ("", "/events", "/checkpoints", "/adapter", "/evaluations"):
        assert client.get(f"{JOBS}/{succeeded.id}{path}").status_code == 404, path
    assert client.get("/v1/fine_tuning/loss_curves", params={"jobs": succeeded.id}).status_code == 404
    assert client.delete(f"{JOBS}/{succeeded.id}").status_code == 404
    assert client.get(JOBS).json()["data"] == []
    assert [file["id"] for file in client.get("/v1/files").json()["data"]] == [succeeded.training_file_id]
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [succeeded.base_model]
    with transaction(sessions) as session:
        assert session.scalars(select(Export.state)).one() == "cancelled"
        assert session.scalars(select(Evaluation.state)).one() == "cancelled"


def test_an_unfinished_job_is_cancelled_before_it_is_deleted(
    client: TestClient, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
) -> None:
    with transaction(sessions) as session:
        job = make_job(session, project, make_file(session, storage, project))
    refused = client.delete(f"{JOBS}/{job.id}")
    assert (refused.status_code, error_of(refused)["code"]) == (400, "invalid_job_state")
    client.post(f"{JOBS}/{job.id}/cancel")
    assert client.delete(f"{JOBS}/{job.id}").status_code == 200


def test_the_jobs_of_a_file_are_those_that_train_validate_or_are_evaluated_with_it(
    client: TestClient, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
) -> None:
    with transaction(sessions) as session:
        first, second, third = (make_file(session, storage, project) for _ in "123")
        evaluated = make_succeeded_job(session, storage, project)
        (result, *_) = checkpoints.kept(session, evaluated.id)
        for _ in "12":
            evaluations.insert(session, evaluated, result, third, EvaluationSettings())
        validated = make_job(session, project, first, validation_file=second)
        trained = make_job(session, project, second)
    body = {"model": base_model, "training_file": first.id, "evaluation": {"file": third.id, "graders": []}}
    to_evaluate = client.post(JOBS, json=body).json()["id"]
    found = {first: [to_evaluate, validated.id], second: [trained.id, validated.id], third: [to_evaluate, evaluated.id]}
    for file, job_ids in found.items():
        page = client.get(JOBS, params={"file": file.id}).json()["data"]
        assert [job["id"] for job in page] == job_ids
