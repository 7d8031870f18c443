"""A worker process: what it does beside its slots."""

from __future__ import annotations

from tests.deadline import until
from tests.worker.worker_harness import WorkerHarness
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
