"""The operator's webhook: failed jobs, lost workers and low disk space, signed with the secret of the settings."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from pydantic import ValidationError
from sqlalchemy import select, text, update

from app.db.engine import Sessions, transaction
from app.db.scheduling import workers
from app.db.tables import Project, WebhookDelivery, WebhookEndpoint, Worker
from app.db.webhooks import endpoints, operator
from app.domain.webhooks import new_secret
from app.errors import NotFound
from app.services import webhooks
from app.settings import Settings
from tests.deadline import until
from tests.factories import make_failed_job
from tests.receiver import Receiver
from tests.worker.worker_harness import WorkerHarness
from worker.node.resources import Resources
from worker.reconciler.reconciler import DISK_LOW_MARGIN_PERCENT, Reconciler
from worker.webhooks.sender import WebhookSender

SECRET = new_secret()


@pytest.fixture
def settings(settings: Settings, receiver: Receiver) -> Settings:
    return settings.model_copy(
        update={
            "webhook_allow_http": True,
            "webhook_allowed_networks": "127.0.0.0/8",
            "operator_webhook_url": receiver.url,
            "operator_webhook_secret": SECRET,
        }
    )


@pytest.fixture
def sender(resources: Resources) -> WebhookSender:
    """A sender that has set the operator's endpoint, as at its start."""
    sender = WebhookSender(resources)
    sender._set_operator_endpoint()
    return sender


def events(sessions: Sessions) -> list[tuple[str, dict[str, object]]]:
    with transaction(sessions) as session:
        rows = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.seq))
        return [(row.event_type, row.data) for row in rows]


def test_a_failed_job_of_any_project_is_posted_with_a_valid_signature(
    harness: WorkerHarness, sender: WebhookSender, receiver: Receiver, project: Project
) -> None:
    with transaction(harness.sessions) as session:
        job = make_failed_job(session, harness.resources.storage, project)
    with ThreadPoolExecutor(2) as pool:
        assert sender.round(pool) == 1
        until(lambda: receiver.received, "the event")
    request = receiver.received[0]
    client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
    client.webhooks.verify_signature(request.body, request.headers)
    body = json.loads(request.body)
    assert body["type"] == "operator.job_failed"
    assert body["data"]["id"] == job.id
    assert body["data"]["project_id"] == project.id
    assert body["data"]["code"] == "invalid_training_file"


def test_lost_workers_and_low_disk_space_are_announced_once(harness: WorkerHarness, sender: WebhookSender) -> None:
    with transaction(harness.sessions) as session:
        workers.heartbeat(session, "gpu0@host#1", "gpu", "host", 1, {})
        session.execute(update(Worker).values(seen_at=text("clock_timestamp() - interval '10 minutes'")))
    reconciler = Reconciler(harness.resources)
    reconciler.settings = reconciler.settings.model_copy(update={"low_disk_percent": 100})
    for _ in range(2):
        reconciler.find_lost_workers()
        reconciler.check_disk()
    (lost, worker), (low, disk) = events(harness.sessions)
    assert (lost, worker["worker"], worker["hostname"]) == ("operator.worker_lost", "gpu0@host#1", "host")
    assert low == "operator.disk_low"
    assert 0 < disk["free_bytes"] < disk["disk_bytes"]
    usage = shutil.disk_usage(harness.resources.settings.data_dir)
    about_the_limit = max(0.0, 100 * usage.free / usage.total - DISK_LOW_MARGIN_PERCENT / 2)
    for percent in (about_the_limit, 100):
        reconciler.settings = reconciler.settings.model_copy(update={"low_disk_percent": percent})
        reconciler.check_disk()
    assert len(events(harness.sessions)) == 2
    reconciler.settings = reconciler.settings.model_copy(update={"low_disk_percent": -2})
    reconciler.check_disk()  # enough space is free again
    reconciler.settings = reconciler.settings.model_copy(update={"low_disk_percent": 100})
    reconciler.check_disk()
    assert [each for each, _ in events(harness.sessions)].count("operator.disk_low") == 2


def test_projects_do_not_see_the_endpoint(sessions: Sessions, sender: WebhookSender, project: Project) -> None:
    with transaction(sessions) as session:
        with pytest.raises(NotFound):
            webhooks.get(session, project.id, operator.ENDPOINT_ID)
        endpoints.announce(session, project.id, "fine_tuning.job.failed", "{}")
    assert events(sessions) == []


def test_without_the_setting_the_endpoint_and_its_deliveries_are_deleted(
    harness: WorkerHarness, sender: WebhookSender, project: Project
) -> None:
    with transaction(harness.sessions) as session:
        operator.announce(session, "operator.disk_low", {})
    sender.settings = sender.settings.model_copy(update={"operator_webhook_url": None})
    sender._set_operator_endpoint()
    with transaction(harness.sessions) as session:
        assert session.scalars(select(WebhookEndpoint)).all() == []
        operator.announce(session, "operator.disk_low", {})
    assert events(harness.sessions) == []


def test_a_url_that_the_rules_refuse_turns_the_webhook_off_and_the_reason_is_known(
    sessions: Sessions, sender: WebhookSender
) -> None:
    settings = sender.settings
    sender.settings = settings.model_copy(update={"webhook_allow_http": False})
    sender._set_operator_endpoint()
    with transaction(sessions) as session:
        assert not session.get_one(WebhookEndpoint, operator.ENDPOINT_ID).enabled
        assert (operator.off_reason(session) or "").startswith("TUNERY_OPERATOR_WEBHOOK_URL: ")
    sender.settings = settings
    sender._set_operator_endpoint()
    with transaction(sessions) as session:
        assert operator.off_reason(session) is None


def test_a_receiver_that_is_gone_turns_the_webhook_off(
    harness: WorkerHarness, sender: WebhookSender, receiver: Receiver
) -> None:
    receiver.answers.append(410)
    with transaction(harness.sessions) as session:
        operator.announce(session, "operator.disk_low", {})
    with ThreadPoolExecutor(1) as pool:
        sender.round(pool)
    with transaction(harness.sessions) as session:
        assert "410" in str(operator.off_reason(session))


@pytest.mark.parametrize(
    "secret", [None, "whsec_", "whsec_short", "whsec_$$$", "c2VjcmV0IHdpdGhvdXQgYSBwcmVmaXggICAgICAg"]
)
def test_a_url_needs_a_secret_that_can_sign(secret: str | None) -> None:
    urls = {"database_url": "postgresql://x/x", "redis_url": "redis://x"}
    with pytest.raises(ValidationError, match="openssl rand"):
        Settings(**urls, operator_webhook_url="https://alerts.example.com/", operator_webhook_secret=secret)
