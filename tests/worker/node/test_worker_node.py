"""A worker process: what it does beside its slots."""

from __future__ import annotations

from collections.abc import Callable, Collection
from unittest.mock import MagicMock

import pytest

from app.db.engine import transaction
from app.db.scheduling import device_losses
from app.domain.jobs.states import Reason
from tests.deadline import until
from tests.worker.worker_harness import WorkerHarness
from worker.node.resources import Resources
from worker.node.slot import Slot
from worker.node.worker_node import WorkerNode


def test_a_worker_empties_the_work_directories_of_killed_attempts_in_its_own_data_directory(
    harness: WorkerHarness,
) -> None:
    """With a bucket each host has a data directory, and the reconciler runs on one of them."""
    job = harness.create_queued_job()
    running = harness.claim()
    kept, left = (
        harness.resources.settings.work_dir / job.id / f"attempt-{attempt}" / "training.jsonl"
        for attempt in (running.attempt, running.attempt - 1)
    )
    for path in (kept, left):
        path.parent.mkdir(parents=True)
        path.touch()
    (left.parent / "trainer.log").touch()
    node = WorkerNode(harness.resources.settings)
    node.open("cpu0@other-host", ["cpu"])
    try:
        until(lambda: not left.exists(), "the directory of the earlier attempt was emptied")
    finally:
        node.stop()
        node.close()
    assert kept.exists()
    assert (left.parent / "trainer.log").exists()


def test_a_worker_that_fails_to_open_closes_its_resources_after_its_slots(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, join, close = [], Slot.join, Resources.close

    def join_slot(slot: Slot, timeout_seconds: float) -> bool:
        closed.append(slot.name)
        return join(slot, timeout_seconds)

    def close_resources(resources: Resources) -> None:
        closed.append("resources")
        close(resources)

    monkeypatch.setattr(Slot, "join", join_slot)
    monkeypatch.setattr(Resources, "close", close_resources)
    monkeypatch.setattr("worker.node.worker_node.supported_types", lambda: 1 // 0)
    node = WorkerNode(harness.resources.settings)
    with pytest.raises(ZeroDivisionError):
        node.open("cpu0@host", ["cpu"])
    node.close()
    assert closed == ["cpu0@host", "resources"]


def test_a_worker_out_of_service_offers_no_trial_answers(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[Callable[[], Collection[str]]] = []

    def offer(_resources: Resources, _owner: str, _slot: str, models: Callable[[], Collection[str]]) -> MagicMock:
        offered.append(models)
        return MagicMock()

    monkeypatch.setattr("worker.answers.TrialAnswers", offer)
    node = WorkerNode(harness.resources.settings.model_copy(update={"trial_answers": True}))
    node.open("gpu0@host", ["gpu"])
    try:
        until(lambda: offered[0](), "the base model is offered")
        with transaction(harness.sessions) as session:
            for _ in range(device_losses.MAX_IN_A_ROW):
                device_losses.count(session, "gpu0@host#1", "ftjob-1", Reason.DEVICE_LOST)
        until(lambda: not offered[0](), "nothing is offered")
    finally:
        node.stop()
        node.close()
