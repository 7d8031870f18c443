"""One request for each code of an answer that makes the service give it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from app.api import bootstrap_guard
from app.api import idempotency as once
from app.api.routes import webhooks as webhook_routes
from app.db.access import idempotency
from app.db.access.idempotency import KeyedRequest
from app.db.engine import transaction
from app.db.jobs import evaluations, jobs
from app.db.jobs.leases import Lease
from app.db.tables import Checkpoint, Evaluation, Job, Project, Upload, WebhookDelivery
from app.db.webhooks import deliveries, endpoints
from app.domain.evaluations.spec import EvaluationErrorCode
from app.domain.jobs.states import TERMINAL
from app.services.access import keys
from app.services.datasets import profile
from app.services.files import uploads
from app.services.jobs import plan
from tests.answering_engine import TO_ENGINES, AnsweringEngine, answering, deliver
from tests.factories import chat_lines, fail_attempt, make_project, make_succeeded_job

JSON = {"Content-Type": "application/json"}
JOBS = "/v1/fine_tuning/jobs"
CHAT = "/v1/chat/completions"
TOO_LONG = "This model's maximum context length is 8 tokens. However, you requested 9."
EVENT = "fine_tuning.job.succeeded"
Provoke = Callable[["Server"], Any]

ENDPOINT = {"name": "a", "url": "https://hooks.example.com/", "event_types": [EVENT]}


class Server:
    """The API with a base model, a dataset, and ways to make it fail."""

    def __init__(self, app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.app, self.client, self.monkeypatch = app, client, monkeypatch
        self.sessions, self.storage = app.state.app_state.sessions, app.state.app_state.storage

    @property
    def project(self) -> Project:
        with transaction(self.sessions) as session:
            return make_project(session)

    def as_another(self, name: str, scopes: Sequence[str] = keys.ADMIN_SCOPES, **limits: int) -> dict[str, str]:
        """Headers with a key of another project, which has these limits."""
        with transaction(self.sessions) as session:
            project = make_project(session, name)
            for limit, value in limits.items():
                setattr(project, limit, value)
            return {"Authorization": f"Bearer {keys.issue(session, project, name, scopes).secret}"}

    def set(self, **settings: Any) -> None:
        app_state = self.app.state.app_state
        changed = app_state.settings.model_copy(update=settings)
        self.monkeypatch.setitem(self.app.state._state, "app_state", replace(app_state, settings=changed))

    def reach_loopback(self) -> None:
        """Have the API connect to engines on loopback."""
        client = self.app.state.app_state.engine_client
        self.monkeypatch.setattr(client, "_settings", client._settings.model_copy(update=TO_ENGINES))

    def upload(self, content: bytes = chat_lines(), filename: str = "train.jsonl", **how: Any) -> Any:
        file = {"file": (filename, content)}
        return self.client.post("/v1/files", data={"purpose": "fine-tune"}, files=file, **how)

    def create(self, **body: Any) -> Any:
        asked = {"model": "tiny", "training_file": self.upload().json()["id"]} | body
        return self.client.post("/v1/fine_tuning/jobs", json=asked)

    def raising(self, error: Exception) -> Any:
        def fail() -> None:
            raise error

        path = f"/boom/{type(error).__name__}"
        self.app.add_api_route(path, fail)
        return self.client.get(path)


def resume_what_runs(server: Server) -> Any:
    job_id = server.create().json()["id"]
    return server.client.post(f"/v1/fine_tuning/jobs/{job_id}/resume")


def plan_too_slowly(server: Server) -> Any:
    server.monkeypatch.setattr(plan, "DEADLINE_SECONDS", 0.0)
    file_id = server.upload().json()["id"]
    return server.client.post("/v1/fine_tuning/jobs/plan", json={"model": "tiny", "training_file": file_id})


def ask(server: Server, fault: tuple[int, dict[str, str], bytes]) -> Any:
    """Ask a model whose engine responds with this."""
    job = succeeded(server)
    server.reach_loopback()
    with answering(AnsweringEngine(fault=fault)) as engine:
        with transaction(server.sessions) as session:
            deliver(session, job, engine.url)
        return server.client.post(CHAT, json={"model": job.fine_tuned_model, "messages": []})


def ask_a_trial_for_audio(server: Server) -> Any:
    server.set(trial_answers=True)
    body = {"model": "tiny", "messages": [], "modalities": ["text", "audio"]}
    return server.client.post(CHAT, json=body, headers=server.as_another("trial"))


def upload_too_much(server: Server) -> Any:
    server.set(max_file_bytes=10)
    return server.upload()


def ask_for_an_adapter(server: Server) -> Any:
    return server.client.get(f"/v1/fine_tuning/jobs/{server.create().json()['id']}/adapter")


def ask_for_a_deleted_adapter(server: Server) -> Any:
    job = succeeded(server)
    server.client.delete(f"/v1/files/{job.adapter_archive_file_id}")
    return server.client.get(f"{JOBS}/{job.id}/adapter")


def read_past_the_end(server: Server) -> Any:
    headers = {"Range": "bytes=999999-"}
    return server.client.get(f"/v1/files/{server.upload().json()['id']}/content", headers=headers)


def post_json(text: str) -> Provoke:
    return lambda server: server.client.post("/v1/fine_tuning/jobs", content=text, headers=JSON)


def send_again_too_early(server: Server) -> Any:
    server.monkeypatch.setattr(once, "DUPLICATE_TIMEOUT_SECONDS", 0.0)
    with transaction(server.sessions) as session:
        idempotency.reserve_key(session, KeyedRequest(server.project.id, "duplicate", "POST", JOBS, "first"))
        return server.client.post(JOBS, json={}, headers={"Idempotency-Key": "duplicate"})


def send_another_under_one_key(server: Server) -> Any:
    headers = {"Idempotency-Key": "one"}
    server.client.post("/v1/webhook_endpoints", json=ENDPOINT, headers=headers)
    return server.client.post("/v1/webhook_endpoints", json=ENDPOINT | {"name": "b"}, headers=headers)


def clone_without_the_file(server: Server) -> Any:
    job = succeeded(server)
    server.client.delete(f"/v1/files/{job.training_file_id}")
    return server.client.post(f"{JOBS}/{job.id}/clone", json={})


def export_on_another_base(server: Server) -> Any:
    job = succeeded(server)
    trained_on = {"files": {}, "base_model": {"manifest_sha256": "another"}}
    with transaction(server.sessions) as session:
        session.execute(update(Checkpoint).where(Checkpoint.job_id == job.id).values(manifest=trained_on))
    return server.client.post(f"{JOBS}/{job.id}/exports", json={"type": "merged"})


def cancel_an_evaluation_that_has_ended(server: Server) -> Any:
    job = succeeded(server)
    path = f"{JOBS}/{job.id}/evaluations"
    made = server.client.post(path, json={"file": job.training_file_id, "graders": []}).json()
    with transaction(server.sessions) as session:
        assert evaluations.claim(session, "a#1", 60) is not None
        lease = Lease(made["id"], 1, "a#1")
        fail_attempt(session, Evaluation, lease, EvaluationErrorCode.SERVER_ERROR, "The generation crashed")
    return server.client.post(f"{path}/{made['id']}/cancel")


def succeeded(server: Server) -> Job:
    """With nothing else that waits for a worker."""
    with transaction(server.sessions) as session:
        for waiting in session.scalars(select(Job.id).where(Job.state.not_in(TERMINAL))).all():
            jobs.cancel(session, server.project.id, waiting)
        return make_succeeded_job(session, server.storage, server.project)


def report_too_slowly(server: Server) -> Any:
    for name in ("READ_TIMEOUT_SECONDS", "KILL_AFTER_SECONDS"):
        server.monkeypatch.setattr(profile, name, 0)
    return server.client.post(f"/v1/files/{server.upload().json()['id']}/validate", params={"model": "tiny"})


def begin_upload(server: Server, size_bytes: int = 10) -> str:
    asked = {"filename": "a.txt", "purpose": "user_data", "bytes": size_bytes, "mime_type": "text/plain"}
    return f"/v1/uploads/{server.client.post('/v1/uploads', json=asked).json()['id']}"


def complete(server: Server, part: bytes, **more: str) -> Any:
    upload = begin_upload(server)
    added = server.client.post(f"{upload}/parts", files={"data": part}).json()
    return server.client.post(f"{upload}/complete", json={"part_ids": [added["id"]]} | more)


def add_to_a_cancelled_upload(server: Server) -> Any:
    upload = begin_upload(server)
    server.client.post(f"{upload}/cancel")
    return server.client.post(f"{upload}/parts", files={"data": b"x"})


def add_to_an_expired_upload(server: Server) -> Any:
    upload = begin_upload(server)
    past = datetime.now(UTC) - timedelta(seconds=1)
    with transaction(server.sessions) as session:
        session.execute(update(Upload).where(Upload.id == upload.rsplit("/", 1)[1]).values(expires_at=past))
    return server.client.post(f"{upload}/parts", files={"data": b"x"})


def go_on_at_the_wrong_place(server: Server) -> Any:
    headers = {"Content-Range": "bytes 5-9/10"}
    return server.client.put(f"{begin_upload(server)}/content", content=b"56789", headers=headers)


def send_content_from_two_places(server: Server) -> Any:
    """The other one begins as soon as this one has begun."""
    begin = uploads.begin_writing
    server.monkeypatch.setattr(uploads, "begin_writing", lambda *given: (begin(*given), begin(*given))[0])
    return server.client.put(f"{begin_upload(server)}/content", content=b"0123456789")


def fall_silent(server: Server) -> Any:
    upload = begin_upload(server)
    server.set(body_idle_seconds=0)  # so that any wait for the body is too long
    return server.client.put(f"{upload}/content", content=b"0123456789")


def deliver_to_a_disabled_endpoint(server: Server) -> Any:
    endpoint = server.client.post("/v1/webhook_endpoints", json=ENDPOINT).json()["id"]
    with transaction(server.sessions) as session:
        endpoints.announce(session, server.project.id, EVENT, "{}")
    path = f"/v1/webhook_endpoints/{endpoint}"
    delivery = server.client.get(f"{path}/deliveries").json()["data"][0]["id"]
    server.client.post(path, json={"enabled": False})
    return server.client.post(f"{path}/deliveries/{delivery}/redeliver")


def try_a_deaf_endpoint(server: Server) -> Any:
    """What a sender would write down is written down as soon as there is something to send."""
    begin = webhook_routes._begin_test
    nobody = deliveries.DeliveryOutcome(False, 3, None, "connection refused", None, None)

    def begin_and_fail(*given: Any) -> WebhookDelivery:
        delivery = begin(*given)
        with transaction(server.sessions) as session:
            for claimed in deliveries.claim(session, 10, 60):
                deliveries.record_outcome(session, claimed, nobody)
        return delivery

    server.monkeypatch.setattr(webhook_routes, "_begin_test", begin_and_fail)
    endpoint = server.client.post("/v1/webhook_endpoints", json=ENDPOINT).json()["id"]
    return server.client.post(f"/v1/webhook_endpoints/{endpoint}/test", json={"event_type": EVENT})


def make_a_key_for_an_archived_project(server: Server) -> Any:
    admin = server.as_another("operators")
    old = server.client.post("/v1/organization/projects", json={"name": "old"}, headers=admin).json()["id"]
    path = f"/v1/organization/projects/{old}"
    server.client.post(f"{path}/archive", headers=admin)
    return server.client.post(f"{path}/api_keys", json={"name": "late", "scopes": ["all"]}, headers=admin)


def ask_too_often(server: Server) -> Any:
    headers = server.as_another("eager", max_requests_per_second=1)
    return [server.client.get("/v1/models", headers=headers) for _ in range(3)][-1]


def queue_more_than_allowed(server: Server) -> Any:
    headers = server.as_another("full", max_queued_jobs=0)
    file_id = server.upload(headers=headers).json()["id"]
    return server.client.post(JOBS, json={"model": "tiny", "training_file": file_id}, headers=headers)


def knock_from_outside(server: Server) -> Any:
    server.monkeypatch.setattr(bootstrap_guard, "has_key", lambda _: False)
    return TestClient(server.app, base_url="http://192.0.2.7:8000").get("/v1/models")


PROVOCATIONS: dict[str, Provoke] = {
    "adapter_deleted": ask_for_a_deleted_adapter,
    "adapter_not_found": ask_for_an_adapter,
    "conflicting_parameters": lambda s: s.create(hyperparameters={"lora_alpha": 16}, lora={"alpha": 8}),
    "file_deleted": clone_without_the_file,
    "file_too_large_to_plan": plan_too_slowly,
    "idempotency_key_reused": send_another_under_one_key,
    "invalid_endpoint_state": deliver_to_a_disabled_endpoint,
    "invalid_evaluation_state": cancel_an_evaluation_that_has_ended,
    "invalid_job_state": resume_what_runs,
    "invalid_json": post_json("{"),
    "invalid_multipart": lambda s: s.client.post("/v1/files", content=b"{}", headers=JSON),
    "invalid_project_state": make_a_key_for_an_archived_project,
    "invalid_training_file": lambda s: s.upload(b'{"a": 1}\noops\n'),
    "invalid_type": lambda s: s.create(seed="7"),
    "invalid_upload_state": add_to_a_cancelled_upload,
    "invalid_value": lambda s: s.create(suffix="x" * 65),
    "md5_mismatch": lambda s: complete(s, b"0123456789", md5="0" * 32),
    "missing_required_parameter": post_json('{"model": "tiny"}'),
    "model_unavailable": export_on_another_base,
    "unknown_parameter": lambda s: s.create(lora={"rnak": 8}),
    "unsupported_value": lambda s: s.create(method={"type": "reinforcement"}),
    "upload_expired": add_to_an_expired_upload,
    "upload_offset_mismatch": go_on_at_the_wrong_place,
    "upload_size_mismatch": lambda s: complete(s, b"012"),
    "upload_taken_over": send_content_from_two_places,
    "validation_too_slow": report_too_slowly,
    "webhook_unreachable": try_a_deaf_endpoint,
    "invalid_api_key": lambda s: s.client.get("/v1/models", headers={"Authorization": "Bearer wrong"}),
    "insufficient_permissions": lambda s: s.client.post(JOBS, json={}, headers=s.as_another("x", ["all:read"])),
    "permission_denied": lambda s: s.client.delete("/v1/models/tiny"),
    "model_not_found": lambda s: s.create(model="gpt-4o"),
    "not_found": lambda s: s.client.get("/v1/files/file-nothere"),
    "unknown_url": lambda s: s.client.get("/files"),
    "method_not_allowed": lambda s: s.client.put("/v1/files"),
    "request_timeout": fall_silent,
    "idempotency_key_in_use": send_again_too_early,
    "file_too_large": upload_too_much,
    "request_too_large": post_json('{"model": "' + "x" * (1 << 20) + '"}'),
    "unsupported_content_encoding": lambda s: s.upload(headers={"Content-Encoding": "gzip"}),
    "range_not_satisfiable": read_past_the_end,
    "insufficient_quota": queue_more_than_allowed,
    "rate_limit_exceeded": ask_too_often,
    "server_error": lambda s: s.raising(ZeroDivisionError("secret")),
    "context_length_exceeded": lambda s: ask(s, (400, {}, json.dumps({"error": {"message": TOO_LONG}}).encode())),
    "engine_failed": lambda s: ask(s, (500, {}, b'{"error": {"message": "CUDA error"}}')),
    "engine_unavailable": lambda s: ask(s, (503, {}, b"")),
    "model_not_served": lambda s: s.client.post(CHAT, json={"model": "tiny"}, headers=s.as_another("unserved")),
    "unsupported_parameter": ask_a_trial_for_audio,
    "service_unavailable": lambda s: s.raising(OperationalError("SELECT 1", {}, Exception("gone"))),
    "no_api_key": knock_from_outside,
    "storage_full": lambda s: s.raising(OSError(28, "No space left on device")),
}  # fmt: skip
