"""Fixtures of a worker with short times: leases of seconds, polls of milliseconds, a tiny registered base model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.engine import transaction
from app.db.tables import Job, Project
from app.settings import Settings
from tests.commands.trained import make_trained_job
from tests.deadline import DEADLINE_SECONDS
from tests.factories import make_base_model
from tests.worker.worker_harness import StepLog, WorkerHarness
from worker.node.resources import Resources


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "lease_ttl_seconds": 10.0,
            "lease_renew_seconds": 0.5,
            "watch_seconds": 0.1,
            "self_fence_seconds": 8.0,
            "self_fence_kill_seconds": 9.0,
            "reap_grace_seconds": 0.0,
            "reconcile_seconds": 0.1,
            "poll_seconds": 0.2,
            "requeue_delay_seconds": 0.0,
            "stop_grace_seconds": 2.0,
            "drain_grace_seconds": 5.0,
            "stall_seconds": 15.0,
            "snapshot_interval_seconds": 0.0,
            "spare_trainer": False,  # a fake trainer cannot be kept warm; jobs/test_warm_trainer.py has real ones
        }
    )


@pytest.fixture
def harness(resources: Resources, project: Project, tmp_path: Path) -> Iterator[WorkerHarness]:
    with transaction(resources.sessions) as session:
        make_base_model(session, tmp_path / "base")
    harness = WorkerHarness(resources, project, tmp_path / "trainer.lock")
    yield harness
    resources.stop.set()
    for thread in harness.threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), "a supervisor did not come to an end"


@pytest.fixture
def step_log(tmp_path: Path) -> StepLog:
    return StepLog(tmp_path / "step_log")


@pytest.fixture
def trained(harness: WorkerHarness, tmp_path: Path) -> Job:
    """A job with an adapter at steps 2 and 4, the latter its result; its weights are not real ones."""
    with transaction(harness.sessions) as session:
        return make_trained_job(session, harness.resources.storage, harness.project, tmp_path / "made")
