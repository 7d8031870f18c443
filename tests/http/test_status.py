"""The status of the service, for admins: problems, workers, queue, failed jobs, storage, backup."""

from __future__ import annotations

import errno
import shutil

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import update
from starlette.testclient import TestClient

from app.db.encryption import encrypt
from app.db.engine import Sessions, transaction
from app.db.operations import status
from app.db.scheduling import workers
from app.db.tables import Delivery, Project
from app.db.webhooks import deliveries as webhook_deliveries
from app.storage import LocalStorage
from tests.factories import (
    make_delivery,
    make_failed_job,
    make_file,
    make_job,
    make_succeeded_job,
    make_target,
    make_webhook_endpoint,
)

PATH = "/v1/organization/status"


def test_a_secret_whose_encryption_key_is_lost_is_a_problem(
    client: TestClient, admin_headers: dict[str, str], sessions: Sessions, project: Project
) -> None:
    with transaction(sessions) as session:
        make_target(session, project.id).credentials = encrypt([Fernet.generate_key().decode()], "{}")
    problems = {each["code"]: each for each in client.get(PATH, headers=admin_headers).json()["problems"]}
    assert "secrets_lost" in problems


def test_a_data_directory_that_fails_hides_nothing_else(
    client: TestClient, admin_headers: dict[str, str], base_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    answer = client.get(PATH, headers=admin_headers)
    assert answer.status_code == 200
    assert answer.json()["storage"]["disk_free_bytes"] is None
    assert "disk_check_failed" in {problem["code"] for problem in answer.json()["problems"]}


def test_after_a_night_of_faults_one_answer_has_each_of_them(
    client: TestClient,
    admin_headers: dict[str, str],
    sessions: Sessions,
    project: Project,
    storage: LocalStorage,
    base_model: str,
) -> None:
    with transaction(sessions) as session:
        failed = make_failed_job(session, storage, project)
        job = make_succeeded_job(session, storage, project)
        waiting = make_job(session, project, make_file(session, storage, project))
        status.report(session, "backup", {"directory": "/backup"})
        workers.heartbeat(session, "gpu0@host#1", "gpu", "host", 1, {})
        workers.mark_lost(session, silent_seconds=-1)
        make_delivery(session, job)
        session.execute(update(Delivery).values(state="failed", error="full", next_attempt_at=None))
    body = client.get(PATH, headers=admin_headers).json()
    assert body["healthy"] is False
    assert {problem["code"] for problem in body["problems"]} == {
        "no_cpu_worker",
        "no_reconciler",
        "workers_lost",
        "no_delivery_sender",
        "deliveries_failed",
    }
    assert body["queue"]["validating_files"] == 1
    assert [job["id"] for job in body["queue"]["oldest"]] == [waiting.id]
    (delivery,) = body["deliveries"]["failed"]
    assert (delivery["target"], delivery["project"], delivery["error"]) == ("production", "default", "full")
    assert (body["deliveries"]["pending"], body["deliveries"]["due"], body["deliveries"]["retried"]) == (0, 0, [])
    (job,) = body["failed_jobs"]["data"]
    assert (job["id"], job["project"], job["code"]) == (failed.id, "default", "invalid_training_file")
    assert body["failed_jobs"]["by_code"] == {"invalid_training_file": 1}
    assert body["storage"]["projects"][0]["stored_bytes"] > 0
    assert body["last_backup"]["details"] == {"directory": "/backup"}
    assert [worker["name"] for worker in body["workers"]] == ["gpu0@host#1"]


def test_what_is_tried_again_and_endpoints_that_fail_are_advice(
    client: TestClient,
    admin_headers: dict[str, str],
    sessions: Sessions,
    project: Project,
    storage: LocalStorage,
    base_model: str,
) -> None:
    with transaction(sessions) as session:
        for name in ("reconciler", "webhooks", "deliveries", "backup"):
            status.report(session, name)
        job = make_succeeded_job(session, storage, project)
        make_delivery(session, job)
        session.execute(update(Delivery).values(error="full", tries=1, attempt=1))
        endpoint = make_webhook_endpoint(session, project.id)
        webhook_deliveries.record_endpoint_failure(session, endpoint.id)
    body = client.get(PATH, headers=admin_headers).json()
    assert (body["healthy"], {problem["code"] for problem in body["problems"]}) == (
        True,
        {"deliveries_retried", "webhooks_failing"},
    )
    (delivery,), (failing,) = body["deliveries"]["retried"], body["webhooks"]["failing"]
    assert (delivery["target"], delivery["error"], delivery["next_attempt_at"] > 0) == ("production", "full", True)
    assert (failing["id"], failing["project"], failing["disabled_reason"]) == (endpoint.id, "default", None)


def test_a_service_whose_processes_report_is_healthy(
    client: TestClient, admin_headers: dict[str, str], sessions: Sessions, base_model: str
) -> None:
    with transaction(sessions) as session:
        status.report(session, "reconciler")
        status.report(session, "backup")
    body = client.get(PATH, headers=admin_headers).json()
    assert (body["healthy"], body["problems"]) == (True, [])


def test_the_disk_of_another_host_is_reported_by_its_workers(
    client: TestClient, admin_headers: dict[str, str], sessions: Sessions, base_model: str
) -> None:
    with transaction(sessions) as session:
        for host, problem in (("full-host", "only 1 GB of 1 TB are free"), ("empty-host", None)):
            about = {"disk": {"directory": "/data", "problem": problem}}
            workers.heartbeat(session, f"gpu0@{host}", "gpu", host, 1, about)
    problems = client.get(PATH, headers=admin_headers).json()["problems"]
    found = [each for each in problems if "worker_disk" in each["code"]]
    assert ["full-host" in each["message"] for each in found] == [True]
