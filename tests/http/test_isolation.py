from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from sqlalchemy import select
from starlette.testclient import TestClient

from app.db.deliveries import deliveries
from app.db.engine import Sessions, transaction
from app.db.jobs import checkpoints, evaluations, exports
from app.db.tables import Delivery, Export, File, Job, Project, Upload, WebhookDelivery
from app.db.webhooks import endpoints
from app.domain.artifacts.exports import ExportKind, ExportType
from app.domain.evaluations.graders import EvaluationSettings
from app.storage import LocalStorage
from tests.factories import make_succeeded_job, make_target, make_upload, make_webhook_endpoint

FAILED = "fine_tuning.job.failed"
BODIES = {
    "evaluations": {"file": "file-x"},
    "deliveries": {"target": "t"},
    "file": {"origin": None},
    "test": {"event_type": FAILED},
    "permissions": {"project_ids": ["proj_x"]},
}
WITHOUT_IDS = {
    "/v1/chat/completions", "/v1/completions",  # the name is in the body: test_answers.py
    "/v1/project", "/v1/events/stream", "/v1/files", "/v1/uploads", "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/plan",
    "/v1/fine_tuning/jobs/groups", "/v1/models",
    "/v1/queue", "/v1/workers", "/v1/delivery_targets", "/v1/webhook_endpoints", "/v1/webhook_event_types",
}  # fmt: skip


@pytest.fixture
def succeeded(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> Job:
    with transaction(sessions) as session:
        job = make_succeeded_job(session, storage, project)
        (result, *_) = checkpoints.kept(session, job.id)
        assert exports.insert(session, job, result, ExportKind(ExportType.MERGED), 1) is not None
        evaluations.insert(session, job, result, session.get_one(File, job.training_file_id), EvaluationSettings())
        return job


@pytest.fixture
def upload(sessions: Sessions, project: Project) -> Upload:
    with transaction(sessions) as session:
        return make_upload(session, project)


@pytest.fixture
def export(sessions: Sessions, succeeded: Job) -> Export:
    with transaction(sessions) as session:
        return session.scalars(select(Export)).one()


@pytest.fixture
def delivery(sessions: Sessions, project: Project) -> WebhookDelivery:
    with transaction(sessions) as session:
        make_webhook_endpoint(session, project.id)
        endpoints.announce(session, project.id, "fine_tuning.job.failed", "{}")
        return session.scalars(select(WebhookDelivery)).one()


@pytest.fixture
def adapter_delivery(sessions: Sessions, succeeded: Job) -> Delivery:
    destination = {"kind": "directory", "path": "/srv/adapters"}
    with transaction(sessions) as session:
        target = make_target(session, succeeded.project_id, destination=destination)
        return deliveries.create(session, succeeded, checkpoints.kept(session, succeeded.id)[0], target)


def operations_on(
    app: FastAPI, job: Job, upload: Upload, export: Export, delivery: WebhookDelivery, adapter_delivery: Delivery
) -> Iterator[tuple[str, str]]:
    """(method, path) of every operation that takes an id, with the ids of ours in it."""
    ids = {
        "{file_id}": job.result_file_ids[0],
        "{job_id}": job.id,
        "{model}": job.fine_tuned_model or "",
        "{upload_id}": upload.id,
        "{export_id}": export.id,
        "{evaluation_id}": (job.evaluation or {})["id"],
        "{endpoint_id}": delivery.endpoint_id,
        "/deliveries/{delivery_id}": f"/deliveries/{adapter_delivery.id}",
        "{target_id}": adapter_delivery.target_id,
        "{permission_id}": "cp_0a1b2c3d4e5f60718293a4b5",
        "/diff": f"/diff?with={job.id}",
        "/loss_curves": f"/loss_curves?jobs={job.id}",
    }
    for template, item in app.openapi()["paths"].items():
        path = template
        if template.startswith("/v1/webhook_endpoints"):
            path = path.replace("{delivery_id}", delivery.id)
        if template.startswith("/v1/organization"):
            continue  # closed to every key that is no admin's, and an admin's opens every project: test_organization.py
        for name, value in ids.items():
            path = path.replace(name, value)
        assert "{" not in path, f"this test does not know the id in {template}"
        if path.startswith("/v1") and template not in WITHOUT_IDS:
            yield from ((method.upper(), path) for method in item)


class TestAnotherProject:
    def test_meets_404_with_every_id_on_every_operation(
        self,
        app: FastAPI,
        client: TestClient,
        succeeded: Job,
        upload: Upload,
        export: Export,
        delivery: WebhookDelivery,
        adapter_delivery: Delivery,
        foreign_headers: dict[str, str],
    ) -> None:
        operations = list(operations_on(app, succeeded, upload, export, delivery, adapter_delivery))
        assert len(operations) >= 12
        for method, path in operations:
            last = path.rsplit("/", 1)[1]
            body = {"json": BODIES.get("file" if last.startswith("file-") else last, {})} if method == "POST" else {}
            foreign = client.request(method, path, headers=foreign_headers, **body)
            assert foreign.status_code == 404, (method, path, foreign.text)
        for method, path in operations:
            if method == "GET":
                assert client.request(method, path).status_code == 200, (method, path)

    def test_cannot_compare_its_own_job_with_ours(
        self,
        client: TestClient,
        succeeded: Job,
        foreign_headers: dict[str, str],
        sessions: Sessions,
        storage: LocalStorage,
    ) -> None:
        with transaction(sessions) as session:
            other = session.scalars(select(Project).where(Project.name == "other")).one()
            own = make_succeeded_job(session, storage, other).id
        answers = [
            client.get(f"/v1/fine_tuning/jobs/{own}/diff", params={"with": job_id}, headers=foreign_headers)
            for job_id in (own, succeeded.id)
        ]
        assert [answer.status_code for answer in answers] == [200, 404]
        assert answers[1].json()["error"]["param"] == "with"

    def test_lists_nothing_of_ours(
        self, client: TestClient, succeeded: Job, foreign_headers: dict[str, str], base_model: str
    ) -> None:
        assert client.get("/v1/files", headers=foreign_headers).json()["data"] == []
        assert client.get("/v1/fine_tuning/jobs", headers=foreign_headers).json()["data"] == []
        models = client.get("/v1/models", headers=foreign_headers).json()["data"]
        assert [model["id"] for model in models] == [base_model]

    def test_cannot_train_on_our_files_or_page_by_our_ids(
        self, client: TestClient, succeeded: Job, foreign_headers: dict[str, str], base_model: str
    ) -> None:
        body = {"model": base_model, "training_file": succeeded.training_file_id}
        for path in ("/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/plan"):
            assert client.post(path, json=body, headers=foreign_headers).status_code == 404
        group = {"job": body, "variants": [{}]}
        assert client.post("/v1/fine_tuning/jobs/groups", json=group, headers=foreign_headers).status_code == 404
        for path, after in (("/v1/files", succeeded.training_file_id), ("/v1/fine_tuning/jobs", succeeded.id)):
            assert client.get(path, params={"after": after}, headers=foreign_headers).status_code == 400
