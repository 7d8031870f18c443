"""Webhooks from the state change of a job to the receiver: outbox, retries, log, crashes."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
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
from tests.sending import TO_LOOPBACK
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
    return settings.model_copy(update=TO_LOOPBACK | {"webhook_timeout_seconds": 5.0})


@dataclass
class Hooks:
    """A project, a receiver of its events, and a sender that delivers them in the test's thread."""

    sender: WebhookSender
    receiver: Receiver
    sessions: Sessions
    project: Project

    def endpoint(self, *types: str, url: str = "", **columns: Any) -> WebhookEndpoint:
        url, types = url or self.receiver.url, types or EVENT_TYPES
        with transaction(self.sessions) as session:
            return make_webhook_endpoint(session, self.project.id, url, list(types), **columns)

    def read(self, endpoint: WebhookEndpoint) -> WebhookEndpoint:
        with transaction(self.sessions) as session:
            return session.get_one(WebhookEndpoint, endpoint.id)

    def enable(self, session: Session, endpoint: WebhookEndpoint) -> None:
        webhooks.change(session, EndpointRules(False, ()), self.project.id, endpoint.id, {"enabled": True})

    def announce(self, event_type: str = CANCELLED, job_id: str = "ftjob-1") -> None:
        with transaction(self.sessions) as session:
            endpoints.announce(session, self.project.id, event_type, json.dumps({"id": job_id}))

    def claim(self) -> list[ClaimedWebhook]:
        with transaction(self.sessions) as session:
            return deliveries.claim(session, 10, "webhooks#1", 60)

    def deliver_due(self) -> int:
        """Deliver everything that is due. Returns the number of deliveries."""
        done = 0
        while claimed := self.claim():
            for each in claimed:
                self.sender.deliver(each)
            done += len(claimed)
        return done

    def send(self) -> int:
        """Announce an event, and deliver what is due."""
        self.announce()
        return self.deliver_due()

    def outbox(self) -> Sequence[WebhookDelivery]:
        with transaction(self.sessions) as session:
            return session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.seq)).all()

    def log(self) -> Sequence[WebhookAttempt]:
        with transaction(self.sessions) as session:
            return session.scalars(select(WebhookAttempt).order_by(WebhookAttempt.attempt)).all()

    def reap(self) -> None:
        """End the leases of senders that were killed, as the reconciler does once they have expired."""
        with transaction(self.sessions) as session:
            expire_leases(session)
            reap_expired(session)

    def make_due(self) -> None:
        with transaction(self.sessions) as session:
            pending = update(WebhookDelivery).where(WebhookDelivery.state == "pending")
            session.execute(pending.values(next_attempt_at=func.clock_timestamp(), **leases.RELEASED))

    def seconds_until_next(self) -> float:
        with transaction(self.sessions) as session:
            wait = select(func.extract("epoch", WebhookDelivery.next_attempt_at - func.clock_timestamp()))
            return float(session.scalar(wait) or -1)


@pytest.fixture
def hooks(resources: Resources, receiver: Receiver, sessions: Sessions, project: Project) -> Hooks:
    return Hooks(WebhookSender(resources), receiver, sessions, project)


class TestOutbox:
    def test_the_outbox_has_the_state_changes_of_a_job_that_the_enabled_endpoints_of_its_project_ask_for(
        self, harness: WorkerHarness, hooks: Hooks
    ) -> None:
        with transaction(hooks.sessions) as session:
            make_webhook_endpoint(session, make_project(session, "other").id, "https://hooks.example.com/", EVENT_TYPES)
        hooks.endpoint(**DISABLED_BY_OWNER)
        every, success = hooks.endpoint(), hooks.endpoint(SUCCEEDED)
        job = harness.create_queued_job()
        harness.run_next_job(TrainerPlan(steps=1))
        rows = hooks.outbox()
        asked = [row.event_type.rpartition(".")[2] for row in rows if row.endpoint_id == every.id]
        assert asked == ["queued", "running", "succeeded"]
        assert [row.event_type for row in rows if row.endpoint_id == success.id] == [SUCCEEDED]
        assert all(row.data == {"id": job.id} for row in rows)
        assert (len(rows), len({row.event_id for row in rows})) == (4, 3)  # one id for both of the success

    def test_the_outbox_has_nothing_of_a_rolled_back_transaction(self, harness: WorkerHarness, hooks: Hooks) -> None:
        hooks.endpoint(CANCELLED)
        job = harness.create_queued_job()
        with harness.sessions() as session:
            assert jobs.cancel(session, harness.project.id, job.id) is not None
            session.rollback()
        assert hooks.outbox() == []

    def test_a_write_without_a_state_change_adds_nothing(self, harness: WorkerHarness, hooks: Hooks) -> None:
        hooks.endpoint()
        job = harness.create_queued_job()
        before = len(hooks.outbox())
        with transaction(harness.sessions) as session:
            session.execute(update(Job).where(Job.id == job.id).values(phase="waiting", state=Job.state))
        assert len(hooks.outbox()) == before


class TestDelivery:
    def test_a_delivery_is_logged(self, hooks: Hooks) -> None:
        hooks.receiver.answers = [(200, {}, b"ok\x00 \xff")]
        hooks.endpoint()
        hooks.send()
        (row,) = hooks.outbox()
        assert (row.state, row.attempt, row.next_attempt_at) == ("delivered", 1, None)
        (attempt,) = hooks.log()
        assert (attempt.status_code, attempt.error, attempt.response) == (200, None, "ok\ufffd \ufffd")
        assert attempt.duration_ms >= 0

    def test_a_delivery_does_not_read_the_attempts_before_it(self, hooks: Hooks) -> None:
        """Only the API shows them."""
        read: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            read.extend([statement] if statement.startswith("SELECT") and "webhook_attempts" in statement else [])

        hooks.endpoint()
        hooks.announce()
        event.listen(hooks.sender.resources.engine, "before_cursor_execute", note)
        assert hooks.deliver_due() == 1
        event.remove(hooks.sender.resources.engine, "before_cursor_execute", note)
        assert (hooks.outbox()[0].state, read) == ("delivered", [])

    def test_during_a_rotation_both_secrets_verify(self, hooks: Hooks) -> None:
        endpoint = hooks.endpoint()
        with transaction(hooks.sessions) as session:
            rotated = webhooks.rotate_secret(session, EndpointRules(False, ()), hooks.project.id, endpoint.id, True)
            new = str(rotated.signing_secret)
        hooks.send()
        with transaction(hooks.sessions) as session:
            past = func.clock_timestamp() - timedelta(seconds=1)
            session.execute(update(WebhookEndpoint).values(previous_secret_expires_at=past))
        hooks.send()
        during, after = hooks.receiver.received
        with openai.OpenAI(api_key="unused") as client:
            for secret in (endpoint.secret, new):
                client.webhooks.verify_signature(during.body, during.headers, secret=secret)
            client.webhooks.verify_signature(after.body, after.headers, secret=new)
            with pytest.raises(openai.InvalidWebhookSignatureError):
                client.webhooks.verify_signature(after.body, after.headers, secret=endpoint.secret)


class TestRetries:
    def test_retries_follow_the_schedule_with_one_id_until_delivery(self, hooks: Hooks) -> None:
        hooks.receiver.answers = [500, 302, 404]
        hooks.endpoint()
        hooks.announce()
        waits = []
        for _ in range(4):
            hooks.make_due()
            assert hooks.deliver_due() == 1
            waits.append(hooks.seconds_until_next())
        assert [attempt.status_code for attempt in hooks.log()] == [500, 302, 404, 204]
        assert "redirect" in str(hooks.log()[1].error)
        assert 4 < waits[0] <= 6
        assert 299 < waits[1] <= 360
        assert 1799 < waits[2] <= 2160
        assert hooks.outbox()[0].state == "delivered"
        assert len({got.headers["webhook-id"] for got in hooks.receiver.received}) == 1
        assert len({got.body for got in hooks.receiver.received}) == 1

    def test_retry_after_is_obeyed(self, hooks: Hooks) -> None:
        hooks.receiver.answers = [(429, {"Retry-After": "3600"}, b"")]
        hooks.endpoint()
        hooks.send()
        assert 3590 < hooks.seconds_until_next() <= 3600

    def test_the_tenth_try_is_the_last(self, hooks: Hooks) -> None:
        hooks.receiver.answers = [500] * 11
        hooks.endpoint()
        hooks.announce()
        for _ in range(11):
            hooks.make_due()
            hooks.deliver_due()
        assert (hooks.outbox()[0].state, len(hooks.receiver.received)) == ("failed", 10)

    def test_a_requested_retry_restarts_the_schedule_and_keeps_the_log(self, hooks: Hooks) -> None:
        hooks.endpoint()
        hooks.send()
        with transaction(hooks.sessions) as session:
            deliveries.redeliver(session, session.get_one(WebhookDelivery, hooks.outbox()[0].id))
        hooks.receiver.answers = [500]
        hooks.deliver_due()
        assert 4 < hooks.seconds_until_next() <= 6
        assert [attempt.attempt for attempt in hooks.log()] == [1, 2]
        assert len({got.headers["webhook-id"] for got in hooks.receiver.received}) == 1

    def test_an_address_that_became_private_is_logged_and_retried(
        self, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hooks.endpoint(url="https://hooks.example.com/")
        hooks.announce()
        monkeypatch.setattr("worker.webhooks.webhook_http.resolve", lambda _host, _port: ["10.0.0.1"])
        hooks.deliver_due()
        (attempt,) = hooks.log()
        assert attempt.status_code is None
        assert "resolves to 10.0.0.1" in str(attempt.error)
        assert hooks.outbox()[0].state == "pending"


class TestDisabledEndpoints:
    def test_410_disables_the_endpoint_and_is_announced_to_the_others(self, hooks: Hooks, reviewed: Reviewed) -> None:
        hooks.receiver.answers = [410]
        disabled = hooks.endpoint(CANCELLED)
        hooks.endpoint(DISABLED)
        hooks.send()
        now = hooks.read(disabled)
        assert not now.enabled
        reviewed(now.disabled_reason)
        assert json.loads(hooks.receiver.received[1].body)["data"] == {"id": disabled.id, "reason": now.disabled_reason}
        assert hooks.send() == 0

    def test_five_days_of_failures_disable_the_endpoint_and_a_success_resets_them(
        self, hooks: Hooks, reviewed: Reviewed
    ) -> None:
        endpoint = hooks.endpoint()
        hooks.receiver.answers = [500, 204, 500, 500]
        self._fail(hooks)
        assert hooks.read(endpoint).failing_since is not None
        self._fail(hooks, days=6)  # this delivery succeeds
        assert hooks.read(endpoint).failing_since is None
        self._fail(hooks)
        assert hooks.read(endpoint).enabled
        self._fail(hooks, days=5)
        now = hooks.read(endpoint)
        assert not now.enabled
        reviewed(now.disabled_reason)

    def test_queued_deliveries_are_sent_after_the_endpoint_is_enabled(self, hooks: Hooks) -> None:
        endpoint = hooks.endpoint()
        hooks.announce()
        with transaction(hooks.sessions) as session:
            endpoints.disable(session, endpoint.id, "by request")
        assert hooks.deliver_due() == 0
        with transaction(hooks.sessions) as session:
            hooks.enable(session, endpoint)
        assert hooks.deliver_due() == 1

    @staticmethod
    def _fail(hooks: Hooks, days: int = 0) -> None:
        if days:
            with transaction(hooks.sessions) as session:
                since = func.clock_timestamp() - timedelta(days=days)
                session.execute(update(WebhookEndpoint).values(failing_since=since))
        hooks.send()


class TestCrashes:
    def test_a_sender_that_dies_after_sending_causes_a_second_delivery_with_the_same_id(self, hooks: Hooks) -> None:
        hooks.endpoint()
        hooks.announce()
        (dead,) = hooks.claim()
        hooks.sender._send(dead, hooks.sender._signing_secrets(dead))  # it dies before it records the outcome
        assert hooks.deliver_due() == 0
        hooks.reap()
        assert hooks.deliver_due() == 1
        first, second = hooks.receiver.received
        assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
        hooks.sender.deliver(dead)  # it was only suspended: its outcome is not recorded any more
        assert [attempt.attempt for attempt in hooks.log()] == [2]

    def test_deleting_an_endpoint_during_a_delivery_deletes_its_deliveries(self, hooks: Hooks) -> None:
        endpoint = hooks.endpoint()
        hooks.announce()
        (held,) = hooks.claim()
        with transaction(hooks.sessions) as session:
            session.delete(session.get_one(WebhookEndpoint, endpoint.id))
        hooks.sender.deliver(held)
        assert (hooks.outbox(), hooks.log()) == ([], [])


class TestSeveralSenders:
    def test_a_slow_endpoint_does_not_delay_others(self, hooks: Hooks) -> None:
        over = threading.Event()

        def sleep(handler: BaseHTTPRequestHandler) -> None:
            over.wait(20)
            handler.send_response(200)
            handler.end_headers()

        with receiving() as slow:
            slow.answers = [sleep] * 100
            hooks.endpoint(CANCELLED, url=slow.url)
            for n in range(60):
                hooks.announce(job_id=f"ftjob-{n}")
            hooks.endpoint(SUCCEEDED)
            hooks.announce(SUCCEEDED)
            thread = threading.Thread(target=hooks.sender.run)
            thread.start()
            try:
                until(lambda: hooks.receiver.received and slow.received, "the prompt one is served beside the slow one")
                assert len(slow.received) <= 4
            finally:
                hooks.sender.resources.stop.set()
                over.set()
                thread.join(20)
        assert not thread.is_alive()


class TestRetention:
    def test_deliveries_and_their_log_are_deleted_after_a_month(self, hooks: Hooks) -> None:
        hooks.endpoint()
        hooks.send()
        clean_up(hooks.sender.resources)
        assert len(hooks.outbox()) == 1
        with transaction(hooks.sessions) as session:
            past = func.clock_timestamp() - timedelta(days=31)
            session.execute(update(WebhookDelivery).values(created_at=past))
        clean_up(hooks.sender.resources)
        assert (hooks.outbox(), hooks.log()) == ([], [])

    def test_the_cleanup_deletes_expired_idempotency_keys(self, hooks: Hooks) -> None:
        request: Any = idempotency.KeyedRequest(hooks.project.id, "k", "POST", "/v1/files", "f")
        with transaction(hooks.sessions) as session:
            idempotency.reserve_key(session, request)
            idempotency.store_response(session, request, 200, "{}")
            session.execute(update(idempotency.IdempotencyKey).values(created_at=func.now() - timedelta(hours=25)))
        clean_up(hooks.sender.resources)
        with transaction(hooks.sessions) as session:
            assert session.scalar(select(func.count()).select_from(idempotency.IdempotencyKey)) == 0


class TestEncryptedSecrets:
    KEY = Fernet.generate_key().decode()

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"secret_keys": SecretStr(self.KEY)})

    def test_an_encrypted_secret_signs_as_it_was_given(self, hooks: Hooks) -> None:
        secret = new_secret()
        assert secret not in hooks.endpoint(CANCELLED, secret=secret, encryption_keys=[self.KEY]).secret
        hooks.send()
        [message] = hooks.receiver.received
        openai.OpenAI(api_key="x", webhook_secret=secret).webhooks.verify_signature(message.body, message.headers)

    def test_a_lost_key_disables_its_endpoint_with_the_reason_and_no_other(
        self, hooks: Hooks, reviewed: Reviewed
    ) -> None:
        lost = hooks.endpoint(CANCELLED, secret=new_secret(), encryption_keys=[Fernet.generate_key().decode()])
        kept = hooks.endpoint(CANCELLED, secret=new_secret(), encryption_keys=[self.KEY])
        hooks.send()
        assert len(hooks.receiver.received) == 1
        with transaction(hooks.sessions) as session:
            assert session.get_one(WebhookEndpoint, kept.id).enabled
            row = session.get_one(WebhookEndpoint, lost.id)
            assert not row.enabled
            reviewed(row.disabled_reason or "")
            webhooks.rotate_secret(
                session, EndpointRules(False, (), [self.KEY]), hooks.project.id, lost.id, keep_old=False
            )
            hooks.enable(session, lost)
        assert {each.state for each in hooks.outbox()} == {"pending", "delivered"}
        hooks.make_due()
        hooks.deliver_due()
        assert len(hooks.receiver.received) == 2

    @pytest.mark.parametrize("keys", ["", Fernet.generate_key().decode()], ids=["no key", "another key"])
    def test_without_the_key_a_delivery_is_never_given_up(self, hooks: Hooks, keys: str) -> None:
        endpoint = hooks.endpoint(CANCELLED, secret=new_secret(), encryption_keys=[self.KEY])
        hooks.announce()
        with transaction(hooks.sessions) as session:
            session.execute(update(WebhookDelivery).values(attempt=100, tries=100))  # the next try is the last
        configured = hooks.sender.settings
        hooks.sender.settings = configured.model_copy(update={"secret_keys": SecretStr(keys)})
        hooks.deliver_due()
        assert not hooks.read(endpoint).enabled
        [delivery] = hooks.outbox()
        assert (delivery.state, delivery.tries) == ("pending", 100)
        hooks.sender.settings = configured
        with transaction(hooks.sessions) as session:
            hooks.enable(session, endpoint)
        hooks.deliver_due()
        assert len(hooks.receiver.received) == 1
