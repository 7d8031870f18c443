"""Webhook senders of two versions side by side: no event is lost, and only what a killed sender held comes twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx2
import openai
import pytest
from sqlalchemy import Engine, NullPool, create_engine, text

from tests.deadline import until
from tests.receiver import Receiver, receiving
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.upgrade.deployment import (
    KEY,
    MARKS,
    Deployment,
    client_of,
    create,
    deployment,
    is_alive,
    upload,
)
from tests.upgrade.earlier import EARLIER, check_out
from tools.checkout import ROOT

pytestmark = [*MARKS, pytest.mark.timeout(900)]

SENDER = ("-m", "worker.webhooks")
SETTINGS = {
    "TUNERY_WEBHOOK_ALLOW_HTTP": "true",
    "TUNERY_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    "TUNERY_WEBHOOK_POLL_SECONDS": "0.2",
    "TUNERY_WEBHOOK_TIMEOUT_SECONDS": "300",
    "TUNERY_REAP_GRACE_SECONDS": "1",
}
HELD_BY_SENDER = 4  # deliveries to one endpoint at once, of either version
EVENTS = 10
SECONDS = 120.0  # on a busy machine


@dataclass
class Gate:
    """A response of 204 that waits until the gate is open."""

    opened: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self._count(1)
        self.opened.wait(SECONDS)
        self._count(-1)
        handler.send_response(204)
        handler.end_headers()

    def _count(self, change: int) -> None:
        with self._lock:
            self.waiting += change


@dataclass
class Outbox:
    """The events that the service has to deliver, as PostgreSQL has them."""

    engine: Engine

    def states(self) -> Counter[str]:
        with self.engine.connect() as connection:
            return Counter(connection.scalars(text("SELECT state FROM webhook_deliveries")))

    def event_ids(self) -> set[str]:
        with self.engine.connect() as connection:
            return set(connection.scalars(text("SELECT event_id FROM webhook_deliveries")))

    def end_leases(self) -> int:
        with self.engine.begin() as connection:
            past = (
                "UPDATE webhook_deliveries SET lease_expires_at = clock_timestamp() WHERE lease_expires_at IS NOT NULL"
            )
            return connection.execute(text(past)).rowcount


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def test_no_event_is_lost_and_only_those_of_a_killed_sender_come_twice(receiver: Receiver) -> None:
    check_out()
    with deployment(**SETTINGS) as service:
        base = make_tiny_base(service.directory / "tiny")
        service.run(EARLIER, "-m", "app.db.migrate")
        service.start_api("old-api", EARLIER)
        until(lambda: is_alive(service, "old-api"), "the earlier API", SECONDS)
        service.start_workers("old", EARLIER)
        service.register(EARLIER, base)
        service.stop("old-gpu", "old-cpu")
        secret = create_endpoint(service, receiver.url)
        service.start("old", EARLIER, *SENDER)
        service.run(ROOT, "-m", "app.db.migrate")
        service.start("new", ROOT, *SENDER)
        outbox = Outbox(create_engine(service.urls["DATABASE_URL"], poolclass=NullPool))
        kill_one_while_both_send(service, receiver, outbox, killed="old", count=EVENTS)
        service.stop("old-api")
        service.start_api("new-api", ROOT)
        until(lambda: is_alive(service, "new-api"), "the API of this version", SECONDS)
        service.start("old", EARLIER, *SENDER)
        kill_one_while_both_send(service, receiver, outbox, killed="new", count=2 * EVENTS)
        check_every_message(receiver, outbox, secret)


def create_endpoint(service: Deployment, url: str) -> str:
    """The signing secret of a new endpoint."""
    response = httpx2.post(
        f"{service.root_url}/v1/webhook_endpoints",
        headers={"Authorization": f"Bearer {KEY}"},
        json={"name": "test", "url": url, "event_types": ["fine_tuning.job.cancelled"]},
        trust_env=False,
    )
    assert response.is_success, response.text
    return str(response.json()["signing_secret"])


def kill_one_while_both_send(service: Deployment, receiver: Receiver, outbox: Outbox, killed: str, count: int) -> None:
    """Kill a sender in the middle of its deliveries; the other one delivers everything, `count` events in all."""
    gate, received_before = Gate(), len(receiver.received)
    receiver.answers = [gate] * (2 * EVENTS)
    cancel_jobs(service)
    until(lambda: gate.waiting == 2 * HELD_BY_SENDER, "both senders wait for the receiver", SECONDS)
    service.kill(killed)
    gate.opened.set()
    until(lambda: outbox.states()["pending"] == HELD_BY_SENDER, "the other sender delivers the rest", SECONDS)
    assert len(receiver.received) - received_before == EVENTS  # none of the killed sender's before its lease is over
    assert outbox.end_leases() == HELD_BY_SENDER
    until(lambda: outbox.states() == {"delivered": count}, "it delivers those of the killed one, too", SECONDS)
    assert len(receiver.received) - received_before == EVENTS + HELD_BY_SENDER


def cancel_jobs(service: Deployment) -> None:
    with client_of(service.root_url) as client:
        training_file = upload(client, make_tiny_dataset(service.directory / "short.jsonl", 10))
        for _ in range(EVENTS):
            client.fine_tuning.jobs.cancel(create(client, training_file, 1))


def check_every_message(receiver: Receiver, outbox: Outbox, secret: str) -> None:
    """Each event arrived, signed; one that arrived twice had the same id and the same bytes."""
    arrivals = Counter(message.headers["webhook-id"] for message in receiver.received)
    assert set(arrivals) == outbox.event_ids()
    assert sorted(arrivals.values()) == [1] * 2 * (EVENTS - HELD_BY_SENDER) + [2] * 2 * HELD_BY_SENDER
    bodies: dict[str, set[bytes]] = {}
    client: Any = openai.OpenAI(api_key="unused")
    for message in receiver.received:
        bodies.setdefault(message.headers["webhook-id"], set()).add(message.body)
        event = client.webhooks.unwrap(message.body, message.headers, secret=secret)
        assert (event.id, event.type) == (message.headers["webhook-id"], "fine_tuning.job.cancelled")
    assert all(len(each) == 1 for each in bodies.values())
