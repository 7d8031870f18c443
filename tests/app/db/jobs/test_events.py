"""Event numbers: 1 to n for each job, without a gap, in the order of their commits."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import select

from app.db.engine import Sessions, transaction
from app.db.jobs import claims, events
from app.db.tables import Job, JobEvent, Project
from app.storage import LocalStorage
from tests.factories import append_step_event, lease_of, make_base_model, make_file, make_job, start_job, validate_job


@pytest.fixture
def running(sessions: Sessions, storage: LocalStorage, project: Project, tmp_path: Path) -> Job:
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "base")
        make_job(session, project, make_file(session, storage, project))
        validate_job(session)
        return start_job(session)


def numbers(sessions: Sessions, job: Job) -> list[int]:
    with transaction(sessions) as session:
        return list(session.scalars(select(JobEvent.seq).where(JobEvent.job_id == job.id).order_by(JobEvent.seq)))


def test_writers_at_once_leave_no_gap_and_no_double(sessions: Sessions, running: Job) -> None:
    barrier = threading.Barrier(6)

    def write(name: str) -> None:
        barrier.wait()
        for n in range(15):
            with transaction(sessions) as session:
                claims.append_event(session, lease_of(running), f"{name} {n}")

    threads = [threading.Thread(target=write, args=(f"writer {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(sessions, running) == list(range(1, 4 + 90 + 1))


def test_a_reader_that_pages_never_misses_one(sessions: Sessions, running: Job) -> None:
    """What a reader has seen up to n is all there will ever be up to n: the number is taken under the row's lock."""
    seen: list[list[int]] = []
    over = threading.Event()

    def follow() -> None:
        while not over.is_set():
            seen.append(numbers(sessions, running))

    reader = threading.Thread(target=follow)
    reader.start()
    for n in range(40):
        with transaction(sessions) as session:
            claims.append_event(session, lease_of(running), f"event {n}")
    over.set()
    reader.join()
    assert all(read == list(range(1, len(read) + 1)) for read in seen)


def test_a_rollback_takes_its_number_back(sessions: Sessions, running: Job) -> None:
    before = numbers(sessions, running)
    with sessions() as session:
        claims.append_event(session, lease_of(running), "never told")
        session.rollback()
    assert numbers(sessions, running) == before
    with transaction(sessions) as session:
        claims.append_event(session, lease_of(running), "told")
    assert numbers(sessions, running) == [*before, before[-1] + 1]


def test_pages_are_newest_first_and_join(sessions: Sessions, running: Job) -> None:
    with transaction(sessions) as session:
        for n in range(7):
            claims.append_event(session, lease_of(running), f"event {n}")
        first = events.page(session, running.id, limit=4)
        second = events.page(session, running.id, limit=100, after=first[-1])
    assert [event.seq for event in first + second] == list(range(11, 0, -1))


def test_of_a_step_that_was_run_twice_the_later_counts(sessions: Sessions, running: Job) -> None:
    with transaction(sessions) as session:
        for step, loss in ((1, 1.0), (2, 0.9), (2, 0.5), (3, 0.4)):
            append_step_event(session, running, step, 3, loss)
        rows = events.all_metrics(session, running.id)
    assert [(row["step"], row["train_loss"]) for row in rows] == [(1, 1.0), (2, 0.5), (3, 0.4)]
