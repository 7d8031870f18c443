"""Webhooks from the state change of a job to the receiver: outbox, retries, log, crashes."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

import openai
import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import event, func, select, update
from sqlalchemy.orm import Session

from app.db.access import idempotency
from app.db.engine import Sessions, transaction
from app.db.jobs import jobs, leases
from app.db.tables import Job, Project, WebhookAttempt, WebhookDelivery, WebhookEndpoint
from app.db.webhooks import deliveries, endpoints
from app.db.webhooks.deliveries import ClaimedWebhook
from app.domain.webhooks import EVENT_TYPES, new_secret
from app.services import webhooks
from app.services.webhooks import EndpointRules
from app.settings import Settings
from tests.deadline import until
from tests.factories import expire_leases, make_project, make_webhook_endpoint, reap_expired
from tests.receiver import Receiver, receiving
from tests.sentences import Reviewed
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness
from worker.node.resources import Resources
from worker.reconciler.cleanup import clean_up
from worker.webhooks.sender import WebhookSender

SUCCEEDED = "fine_tuning.job.succeeded"
CANCELLED = "fine_tuning.job.cancelled"
DISABLED = "webhook_endpoint.disabled"
DISABLED_BY_OWNER = {"enabled": False, "disabled_at": func.now(), "disabled_reason": "by request"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    allowed = {"webhook_allow_http": True, "webhook_allowed_networks": "127.0.0.0/8", "webhook_poll_seconds": 0.05}
    return settings.model_copy(update=allowed | {"webhook_timeout_seconds": 5.0})


@pytest.fixture
def sender(resources: Resources) -> WebhookSender:
    return WebhookSender(resources)


def make_endpoint(
    sessions: Sessions, project: Project, url: str, types: list[str] | None = None, **columns: Any
) -> WebhookEndpoint:
    with transaction(sessions) as session:
        return make_webhook_endpoint(session, project.id, url, types or EVENT_TYPES, **columns)


def enable(session: Session, endpoint: WebhookEndpoint) -> None:
    assert endpoint.project_id is not None
    webhooks.change(session, EndpointRules(False, ()), endpoint.project_id, endpoint.id, {"enabled": True})


def announce(sessions: Sessions, project: Project, event_type: str = CANCELLED, job_id: str = "ftjob-1") -> None:
    with transaction(sessions) as session:
        endpoints.announce(session, project.id, event_type, json.dumps({"id": job_id}))


def outbox(sessions: Sessions) -> list[WebhookDelivery]:
    with transaction(sessions) as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.seq)))


def log(sessions: Sessions) -> list[WebhookAttempt]:
    with transaction(sessions) as session:
        return list(session.scalars(select(WebhookAttempt).order_by(WebhookAttempt.attempt)))


def endpoint_now(sessions: Sessions, endpoint: WebhookEndpoint) -> WebhookEndpoint:
    with transaction(sessions) as session:
        return session.get_one(WebhookEndpoint, endpoint.id)


def claim(
    sessions: Sessions, limit: int = 10, lease_seconds: float = 60, busy: tuple[str, ...] = ()
) -> list[ClaimedWebhook]:
    with transaction(sessions) as session:
        return deliveries.claim(session, limit, "webhooks#1", lease_seconds, busy)


def deliver_due(sender: WebhookSender) -> int:
    """Deliver everything that is due, in this thread. Returns the number of deliveries."""
    done = 0
    while claimed := claim(sender.resources.sessions):
        for each in claimed:
            sender.deliver(each)
        done += len(claimed)
    return done


def reap(sessions: Sessions) -> None:
    """End the leases of senders that were killed, as the reconciler does once they have expired."""
    with transaction(sessions) as session:
        expire_leases(session)
        reap_expired(session)


def make_due(sessions: Sessions) -> None:
    with transaction(sessions) as session:
        pending = update(WebhookDelivery).where(WebhookDelivery.state == "pending")
        session.execute(pending.values(next_attempt_at=func.clock_timestamp(), **leases.RELEASED))


def seconds_until_next(sessions: Sessions) -> float:
    with transaction(sessions) as session:
        wait = select(func.extract("epoch", WebhookDelivery.next_attempt_at - func.clock_timestamp()))
        return float(session.scalar(wait) or -1)


class TestOutbox:
    def test_the_outbox_has_every_state_change_of_a_job_in_order(self, harness: WorkerHarness) -> None:
        make_endpoint(harness.sessions, harness.project, "https://hooks.example.com/")
        job = harness.create_queued_job()
        harness.run_next_job(TrainerPlan(steps=2))
        rows = outbox(harness.sessions)
        assert [row.event_type.rpartition(".")[2] for row in rows] == ["queued", "running", "succeeded"]
        assert all(row.data == {"id": job.id} for row in rows)
        assert len({row.event_id for row in rows}) == 3

    def test_the_outbox_has_only_event_types_of_an_endpoint(self, harness: WorkerHarness) -> None:
        endpoint = make_endpoint(harness.sessions, harness.project, "https://hooks.example.com/", [SUCCEEDED])
        harness.create_queued_job()
        harness.run_next_job(TrainerPlan(steps=1))
        assert [(row.event_type, row.endpoint_id) for row in outbox(harness.sessions)] == [(SUCCEEDED, endpoint.id)]

    def test_the_outbox_is_empty_without_an_endpoint(self, harness: WorkerHarness) -> None:
        with transaction(harness.sessions) as session:
            other = make_project(session, "other")
        make_endpoint(harness.sessions, other, "https://hooks.example.com/")
        make_endpoint(harness.sessions, harness.project, "https://hooks.example.com/", **DISABLED_BY_OWNER)
        harness.create_queued_job()
        harness.run_next_job(TrainerPlan(steps=1))
        assert outbox(harness.sessions) == []

    def test_the_outbox_has_nothing_of_a_rolled_back_transaction(self, harness: WorkerHarness) -> None:
        make_endpoint(harness.sessions, harness.project, "https://hooks.example.com/", [CANCELLED])
        job = harness.create_queued_job()
        with harness.sessions() as session:
            assert jobs.cancel(session, harness.project.id, job.id) is not None
            session.rollback()
        assert outbox(harness.sessions) == []

    def test_a_write_without_a_state_change_adds_nothing(self, harness: WorkerHarness) -> None:
        make_endpoint(harness.sessions, harness.project, "https://hooks.example.com/")
        job = harness.create_queued_job()
        before = len(outbox(harness.sessions))
        with transaction(harness.sessions) as session:
            session.execute(update(Job).where(Job.id == job.id).values(phase="waiting", state=Job.state))
        assert len(outbox(harness.sessions)) == before

    def test_each_endpoint_gets_the_same_event_id(self, harness: WorkerHarness) -> None:
        for _ in range(2):
            make_endpoint(harness.sessions, harness.project, "https://hooks.example.com/", [CANCELLED])
        announce(harness.sessions, harness.project)
        first, second = outbox(harness.sessions)
        assert first.event_id == second.event_id
        assert first.id != second.id


class TestDelivery:
    def test_the_official_client_unwraps_the_delivery(
        self, harness: WorkerHarness, sender: WebhookSender, receiver: Receiver
    ) -> None:
        endpoint = make_endpoint(harness.sessions, harness.project, receiver.url, [SUCCEEDED])
        job = harness.create_queued_job()
        harness.run_next_job(TrainerPlan(steps=1))
        assert deliver_due(sender) == 1
        (got,) = receiver.received
        with openai.OpenAI(api_key="unused", webhook_secret=endpoint.secret) as client:
            event = client.webhooks.unwrap(got.body, got.headers)
        assert (event.type, event.object, event.data.id) == (SUCCEEDED, "event", job.id)  # type: ignore[union-attr]
        assert event.id == got.headers["webhook-id"] == outbox(harness.sessions)[0].event_id

    def test_a_delivery_is_logged(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        receiver.answers = [(200, {}, b"ok\x00 \xff")]
        make_endpoint(sessions, project, receiver.url)
        announce(sessions, project)
        deliver_due(sender)
        (row,) = outbox(sessions)
        assert (row.state, row.attempt, row.next_attempt_at) == ("delivered", 1, None)
        (attempt,) = log(sessions)
        assert (attempt.status_code, attempt.error, attempt.response) == (200, None, "ok\ufffd \ufffd")
        assert attempt.duration_ms >= 0

    def test_a_delivery_does_not_read_the_attempts_before_it(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        """Only the API shows them."""
        read: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            read.extend([statement] if statement.startswith("SELECT") and "webhook_attempts" in statement else [])

        make_endpoint(sessions, project, receiver.url)
        announce(sessions, project)
        event.listen(sender.resources.engine, "before_cursor_execute", note)
        assert deliver_due(sender) == 1
        event.remove(sender.resources.engine, "before_cursor_execute", note)
        assert (outbox(sessions)[0].state, read) == ("delivered", [])

    def test_during_a_rotation_both_secrets_verify(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        endpoint = make_endpoint(sessions, project, receiver.url)
        with transaction(sessions) as session:
            rotated = webhooks.rotate_secret(session, EndpointRules(False, ()), project.id, endpoint.id, True)
            new = str(rotated.signing_secret)
        announce(sessions, project)
        deliver_due(sender)
        with transaction(sessions) as session:
            past = func.clock_timestamp() - timedelta(seconds=1)
            session.execute(update(WebhookEndpoint).values(previous_secret_expires_at=past))
        announce(sessions, project)
        deliver_due(sender)
        during, after = receiver.received
        with openai.OpenAI(api_key="unused") as client:
            for secret in (endpoint.secret, new):
                client.webhooks.verify_signature(during.body, during.headers, secret=secret)
            client.webhooks.verify_signature(after.body, after.headers, secret=new)
            with pytest.raises(openai.InvalidWebhookSignatureError):
                client.webhooks.verify_signature(after.body, after.headers, secret=endpoint.secret)


class TestRetries:
    def test_retries_follow_the_schedule_with_one_id_until_delivery(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        receiver.answers = [500, 302, 404]
        make_endpoint(sessions, project, receiver.url)
        announce(sessions, project)
        waits = []
        for _ in range(4):
            make_due(sessions)
            assert deliver_due(sender) == 1
            waits.append(seconds_until_next(sessions))
        assert [attempt.status_code for attempt in log(sessions)] == [500, 302, 404, 204]
        assert "redirect" in str(log(sessions)[1].error)
        assert 4 < waits[0] <= 6
        assert 299 < waits[1] <= 360
        assert 1799 < waits[2] <= 2160
        assert outbox(sessions)[0].state == "delivered"
        assert len({got.headers["webhook-id"] for got in receiver.received}) == 1
        assert len({got.body for got in receiver.received}) == 1

    def test_retry_after_is_obeyed(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        receiver.answers = [(429, {"Retry-After": "3600"}, b"")]
        make_endpoint(sessions, project, receiver.url)
        announce(sessions, project)
        deliver_due(sender)
        assert 3590 < seconds_until_next(sessions) <= 3600

    def test_the_tenth_try_is_the_last(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        receiver.answers = [500] * 11
        make_endpoint(sessions, project, receiver.url)
        announce(sessions, project)
        for _ in range(11):
            make_due(sessions)
            deliver_due(sender)
        assert (outbox(sessions)[0].state, len(receiver.received)) == ("failed", 10)

    def test_a_requested_retry_restarts_the_schedule_and_keeps_the_log(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        make_endpoint(sessions, project, receiver.url)
        announce(sessions, project)
        deliver_due(sender)
        with transaction(sessions) as session:
            deliveries.redeliver(session, session.get_one(WebhookDelivery, outbox(sessions)[0].id))
        receiver.answers = [500]
        deliver_due(sender)
        assert 4 < seconds_until_next(sessions) <= 6
        assert [attempt.attempt for attempt in log(sessions)] == [1, 2]
        assert len({got.headers["webhook-id"] for got in receiver.received}) == 1

    def test_an_address_that_became_private_is_logged_and_retried(
        self, resources: Resources, sessions: Sessions, project: Project
    ) -> None:
        make_endpoint(sessions, project, "https://hooks.example.com/")
        announce(sessions, project)
        deliver_due(WebhookSender(resources, lambda _host, _port: ["10.0.0.1"]))
        (attempt,) = log(sessions)
        assert attempt.status_code is None
        assert "resolves to 10.0.0.1" in str(attempt.error)
        assert outbox(sessions)[0].state == "pending"


class TestDisabledEndpoints:
    def test_410_disables_the_endpoint_and_is_announced_to_the_others(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project, reviewed: Reviewed
    ) -> None:
        receiver.answers = [410]
        disabled = make_endpoint(sessions, project, receiver.url, [CANCELLED])
        make_endpoint(sessions, project, receiver.url, [DISABLED])
        announce(sessions, project)
        deliver_due(sender)
        now = endpoint_now(sessions, disabled)
        assert not now.enabled
        reviewed(now.disabled_reason)
        assert json.loads(receiver.received[1].body)["data"] == {"id": disabled.id, "reason": now.disabled_reason}
        announce(sessions, project)
        assert deliver_due(sender) == 0

    def test_five_days_of_failures_disable_the_endpoint_and_a_success_resets_them(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project, reviewed: Reviewed
    ) -> None:
        endpoint = make_endpoint(sessions, project, receiver.url)
        receiver.answers = [500, 204, 500, 500]
        self._fail(sender, sessions, project)
        assert endpoint_now(sessions, endpoint).failing_since is not None
        self._fail(sender, sessions, project, days=6)  # this delivery succeeds
        assert endpoint_now(sessions, endpoint).failing_since is None
        self._fail(sender, sessions, project)
        assert endpoint_now(sessions, endpoint).enabled
        self._fail(sender, sessions, project, days=5)
        now = endpoint_now(sessions, endpoint)
        assert not now.enabled
        reviewed(now.disabled_reason)

    def test_queued_deliveries_are_sent_after_the_endpoint_is_enabled(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        endpoint = make_endpoint(sessions, project, receiver.url)
        announce(sessions, project)
        with transaction(sessions) as session:
            endpoints.disable(session, endpoint.id, "by request")
        assert deliver_due(sender) == 0
        with transaction(sessions) as session:
            enable(session, endpoint)
        assert deliver_due(sender) == 1

    @staticmethod
    def _fail(sender: WebhookSender, sessions: Sessions, project: Project, days: int = 0) -> None:
        if days:
            with transaction(sessions) as session:
                since = func.clock_timestamp() - timedelta(days=days)
                session.execute(update(WebhookEndpoint).values(failing_since=since))
        announce(sessions, project)
        deliver_due(sender)


class TestCrashes:
    def test_a_sender_that_dies_after_sending_causes_a_second_delivery_with_the_same_id(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        make_endpoint(sessions, project, receiver.url)
        announce(sessions, project)
        (dead,) = claim(sessions)
        sender._send(dead, sender._signing_secrets(dead))  # it dies before it records the outcome
        assert deliver_due(sender) == 0
        reap(sessions)
        assert deliver_due(sender) == 1
        first, second = receiver.received
        assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
        sender.deliver(dead)  # it was only suspended: its outcome is not recorded any more
        assert [attempt.attempt for attempt in log(sessions)] == [2]

    def test_deleting_an_endpoint_during_a_delivery_deletes_its_deliveries(
        self, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        endpoint = make_endpoint(sessions, project, receiver.url)
        announce(sessions, project)
        (held,) = claim(sessions)
        with transaction(sessions) as session:
            session.delete(session.get_one(WebhookEndpoint, endpoint.id))
        sender.deliver(held)
        assert (outbox(sessions), log(sessions)) == ([], [])


class TestSeveralSenders:
    def test_a_slow_endpoint_does_not_delay_others(
        self, resources: Resources, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        over = threading.Event()

        def sleep(handler: BaseHTTPRequestHandler) -> None:
            over.wait(20)
            handler.send_response(200)
            handler.end_headers()

        with receiving() as slow:
            slow.answers = [sleep] * 100
            make_endpoint(sessions, project, slow.url, [CANCELLED])
            for n in range(60):
                announce(sessions, project, job_id=f"ftjob-{n}")
            make_endpoint(sessions, project, receiver.url, [SUCCEEDED])
            announce(sessions, project, SUCCEEDED)
            thread = threading.Thread(target=WebhookSender(resources).run)
            thread.start()
            try:
                until(lambda: receiver.received and slow.received, "the prompt one is served beside the slow one")
                assert len(slow.received) <= 4
            finally:
                resources.stop.set()
                over.set()
                thread.join(20)
        assert not thread.is_alive()


class TestRetention:
    def test_deliveries_and_their_log_are_deleted_after_a_month(
        self, resources: Resources, sender: WebhookSender, receiver: Receiver, sessions: Sessions, project: Project
    ) -> None:
        make_endpoint(sessions, project, receiver.url)
        announce(sessions, project)
        deliver_due(sender)
        clean_up(resources)
        assert len(outbox(sessions)) == 1
        with transaction(sessions) as session:
            past = func.clock_timestamp() - timedelta(days=31)
            session.execute(update(WebhookDelivery).values(created_at=past))
        clean_up(resources)
        assert (outbox(sessions), log(sessions)) == ([], [])

    def test_the_cleanup_deletes_expired_idempotency_keys(
        self, resources: Resources, sessions: Sessions, project: Project
    ) -> None:
        request: Any = idempotency.KeyedRequest(project.id, "k", "POST", "/v1/files", "f")
        with transaction(sessions) as session:
            idempotency.reserve_key(session, request)
            idempotency.store_response(session, request, 200, "{}")
            session.execute(update(idempotency.IdempotencyKey).values(created_at=func.now() - timedelta(hours=25)))
        clean_up(resources)
        with transaction(sessions) as session:
            assert session.scalar(select(func.count()).select_from(idempotency.IdempotencyKey)) == 0


class TestEncryptedSecrets:
    KEY = Fernet.generate_key().decode()

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"secret_keys": SecretStr(self.KEY)})

    def endpoint(self, sessions: Sessions, project: Project, url: str, secret: str, key: str) -> WebhookEndpoint:
        with transaction(sessions) as session:
            return make_webhook_endpoint(session, project.id, url, [CANCELLED], secret, [key])

    def test_an_encrypted_secret_signs_as_it_was_given(
        self, sender: WebhookSender, sessions: Sessions, project: Project, receiver: Receiver
    ) -> None:
        secret = new_secret()
        assert secret not in self.endpoint(sessions, project, receiver.url, secret, self.KEY).secret
        announce(sessions, project)
        deliver_due(sender)
        [message] = receiver.received
        openai.OpenAI(api_key="x", webhook_secret=secret).webhooks.verify_signature(message.body, message.headers)

    def test_a_lost_key_disables_its_endpoint_with_the_reason_and_no_other(
        self, sender: WebhookSender, sessions: Sessions, project: Project, receiver: Receiver, reviewed: Reviewed
    ) -> None:
        lost = self.endpoint(sessions, project, receiver.url, new_secret(), Fernet.generate_key().decode())
        kept = self.endpoint(sessions, project, receiver.url, new_secret(), self.KEY)
        announce(sessions, project)
        deliver_due(sender)
        assert len(receiver.received) == 1
        with transaction(sessions) as session:
            assert session.get_one(WebhookEndpoint, kept.id).enabled
            row = session.get_one(WebhookEndpoint, lost.id)
            assert not row.enabled
            reviewed(row.disabled_reason or "")
            webhooks.rotate_secret(session, EndpointRules(False, (), [self.KEY]), project.id, lost.id, keep_old=False)
            enable(session, lost)
        assert {each.state for each in outbox(sessions)} == {"pending", "delivered"}
        make_due(sessions)
        deliver_due(sender)
        assert len(receiver.received) == 2

    @pytest.mark.parametrize("keys", ["", Fernet.generate_key().decode()], ids=["no key", "another key"])
    def test_without_the_key_a_delivery_is_never_given_up(
        self, sender: WebhookSender, sessions: Sessions, project: Project, receiver: Receiver, keys: str
    ) -> None:
        endpoint = self.endpoint(sessions, project, receiver.url, new_secret(), self.KEY)
        announce(sessions, project)
        with transaction(sessions) as session:
            session.execute(update(WebhookDelivery).values(attempt=100, tries=100))  # the next try is the last
        configured = sender.settings
        sender.settings = configured.model_copy(update={"secret_keys": SecretStr(keys)})
        deliver_due(sender)
        assert not endpoint_now(sessions, endpoint).enabled
        [delivery] = outbox(sessions)
        assert (delivery.state, delivery.tries) == ("pending", 100)
        sender.settings = configured
        with transaction(sessions) as session:
            enable(session, endpoint)
        deliver_due(sender)
        assert len(receiver.received) == 1
