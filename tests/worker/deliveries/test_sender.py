"""The sender as a process: killed in the middle of an attempt; what it logs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.domain.deliveries import targets
from tests.deadline import until
from tests.worker.deliveries.conftest import KEY, REFERENCE, DeliveryHarness
from tests.worker.engine_stand_in import EngineStandIn, serving_engine
from worker.deliveries import sender
from worker.deliveries.sender import DeliverySender
from worker.jobs import stored_files

API_KEY = "very-secret-key"
START_SECONDS = 60.0


@contextmanager
def sender_process(delivery: DeliveryHarness, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    settings = delivery.sender.settings
    environment = os.environ | {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "TUNERY_DATA_DIR": str(settings.data_dir),
        "TUNERY_SECRET_KEYS": KEY,
        "TUNERY_DELIVERY_DIRECTORIES": str(delivery.shared),
        "TUNERY_DELIVERY_ALLOW_HTTP": "true",
        "TUNERY_DELIVERY_ALLOWED_NETWORKS": "127.0.0.0/8",
        "TUNERY_DELIVERY_POLL_SECONDS": "0.05",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.deliveries"], env=environment, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def served() -> Iterator[EngineStandIn]:
    with serving_engine(EngineStandIn("vllm", REFERENCE, api_key=API_KEY)) as served:
        yield served


@pytest.mark.parametrize(
    ("difference", "state"),
    [(0.0, "delivered"), pytest.param(0.1, "failed", marks=pytest.mark.extended("kills a sender once more"))],
)
def test_a_served_name_that_a_killed_sender_has_unloaded_gets_the_adapter_before_and_then_the_new_one(
    delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path, difference: float, state: str
) -> None:
    """It is killed with SIGKILL after the engine has unloaded the name, before it loads the new adapter."""
    delivery.deliver(
        delivery.engine_destination(served), secrets={"api_key": API_KEY}, served_model="bot", reference=REFERENCE
    )
    before, respond, killed, loads = served.loaded["bot"], served.respond, threading.Event(), []

    def hold_back(method: str, path: str, body: dict[str, Any], key: str | None) -> tuple[int, Any]:
        response = respond(method, path, body, key)
        if body.get("lora_name") == "bot":
            loads.append(body.get("lora_path"))
            if loads == [None]:
                killed.wait(START_SECONDS)
        return response

    served.respond = hold_back  # type: ignore[method-assign]
    job = delivery.finished_job("production", reference=REFERENCE)
    with sender_process(delivery, tmp_path / "log"):
        until(lambda: loads == [None], "the engine has unloaded the name", START_SECONDS)
    killed.set()
    assert "bot" not in served.loaded
    assert delivery.sender.claim(10) == []  # the lease of the killed one
    delivery.reap()
    served.difference = difference
    (claimed,) = delivery.sender.claim(10)
    assert claimed.job.id == job.id
    delivery.sender.attempt(claimed)
    row = delivery.delivery(job)
    after = (row.location or {}).get("path", before)
    assert (row.state, row.attempt, served.loaded) == (state, 2, {"bot": after})
    assert loads == [None, before] + ([None, after] if state == "delivered" else [])
    assert (after == before) is (state == "failed")


def test_a_sender_that_stops_keeps_the_lease_of_its_last_attempt(
    delivery: DeliveryHarness, served: EngineStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "RENEW_SECONDS", 0.0)
    served.gate, stop = threading.Event(), delivery.harness.resources.stop
    delivery.target(delivery.engine_destination(served), secrets={"api_key": API_KEY})
    job = delivery.finished_job("production", reference=REFERENCE)
    thread = threading.Thread(target=DeliverySender(delivery.harness.resources).run)
    thread.start()
    try:
        until(lambda: "/v1/completions" in served.calls, "the engine is asked", START_SECONDS)
        stop.set()
        before = delivery.delivery(job).lease_expires_at
        assert before is not None
        until(lambda: (delivery.delivery(job).lease_expires_at or before) > before, "the lease is renewed")
    finally:
        stop.set()
        served.gate.set()
        thread.join()
    assert delivery.delivery(job).state == "delivered"


def test_only_files_of_attempts_that_have_ended_are_removed(delivery: DeliveryHarness) -> None:
    """Another sender may use the same data directory."""
    delivery.target({"kind": "directory", "path": str(delivery.shared)})
    delivery.finished_job("production")
    (claimed,) = DeliverySender(delivery.harness.resources).claim(10)
    of_delivery = delivery.sender.settings.work_dir / claimed.id
    ours = of_delivery / f"attempt-{claimed.attempt}"
    for directory in (ours, of_delivery / "attempt-0"):
        directory.mkdir(parents=True)
    delivery.sender._report_if_due()
    assert list(of_delivery.iterdir()) == [ours]


def test_no_log_and_no_error_has_the_key(delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path) -> None:
    """Also where the engine repeats in its response what it was sent."""
    served.respond = lambda *sent: (400, {"error": {"message": f"not {sent[3]}"}})  # type: ignore[method-assign]
    delivery.target(delivery.engine_destination(served), secrets={"api_key": API_KEY})
    job = delivery.finished_job("production", reference=REFERENCE)
    with sender_process(delivery, tmp_path / "log"):
        until(lambda: delivery.delivery(job).error, "an attempt", START_SECONDS)
    error = delivery.error(job)
    assert "not Bearer ***" in error
    assert "delivery sender started" in (tmp_path / "log").read_text()
    for text in (error, *delivery.harness.messages(job), (tmp_path / "log").read_text()):
        assert API_KEY not in text


def test_a_full_disk_of_the_sender_is_named(delivery: DeliveryHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    delivery.target({"kind": "directory", "path": str(delivery.shared)})
    job = delivery.finished_job("production")
    monkeypatch.setattr(stored_files, "fetch", fetch)
    delivery.attempt_due()
    assert delivery.delivery(job).state == "pending"
    assert os.strerror(errno.ENOSPC) in delivery.error(job)


def test_a_delivery_is_tried_eleven_times_over_three_days() -> None:
    delays = [targets.retry_delay_seconds(attempts, 0.0) for attempts in range(1, 12)]
    assert delays == [5, 30, 120, 300, 1800, 7200, 18000, 36000, 72000, 108000, None]
