"""`tunery queue`, `tunery workers` and what `tunery jobs create` asks of the queue."""

from __future__ import annotations

from app.cli.errors import CommandExit
from app.db.engine import Sessions, transaction
from app.db.scheduling import device_losses, workers
from app.db.tables import Project
from app.domain.jobs.states import Reason
from app.storage import LocalStorage
from tests.commands.conftest import Tunery
from tests.factories import WORKER, forecast_queue, make_file, make_job, make_project, start_job, validate_job
from tests.sentences import Reviewed

ABOUT = {"kind": "cuda", "device": "NVIDIA L4", "memory_bytes": 24 * 10**9, "models": ["tiny"], "labels": ["fast"]}


def test_the_queue_and_the_workers_are_shown(
    tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str, reviewed: Reviewed
) -> None:
    with transaction(sessions) as session:
        jobs = [make_job(session, project, make_file(session, storage, project)) for _ in range(2)]
        other = make_project(session, "other")
        make_job(session, other, make_file(session, storage, other))
        for _ in range(3):
            validate_job(session)
        workers.heartbeat(session, WORKER, "gpu", "host7", 1, ABOUT)
        start_job(session)
        forecast_queue(session)
    shown = tunery("queue")
    assert shown.exit_code == 0, shown.err
    rows = [line.split() for line in shown.out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [[jobs[0].id, "running"], [jobs[1].id, "queued"]]
    reviewed(shown.err)
    assert tunery("queue", "--json").json["own"]["waiting"] == 1

    listed = tunery("workers")
    assert jobs[0].id in listed.out
    assert "NVIDIA L4, 24.0" in listed.out
    assert "host7" not in listed.out
    assert tunery("workers", "--json").json[0]["labels"] == ["fast"]


def test_a_worker_that_lost_its_gpu_is_resumed(operator: Tunery, sessions: Sessions) -> None:
    with transaction(sessions) as session:
        workers.heartbeat(session, "gpu0@host#1", "gpu", "host", 1, ABOUT)
        for _ in range(device_losses.MAX_IN_A_ROW):
            device_losses.count(session, "gpu0@host#1", "ftjob-1", Reason.DEVICE_LOST)
    assert operator("workers", "--json").json[0]["status"] == "out_of_service"
    assert operator("workers", "--resume", "gpu0@host", "--json").json[0]["status"] == "idle"
    assert operator("workers", "--resume", "gpu9@host").exit_code == CommandExit.NOT_FOUND
