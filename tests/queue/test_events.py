"""Event numbers: 1 to n for each job, without a gap, in the order of their commits."""

from __future__ import annotations

import threading
from itertools import pairwise

from sqlalchemy import select, text

from app.db.engine import Sessions, transaction
from app.db.jobs import claims, events
from app.db.jobs.leases import lease_of
from app.db.tables import Job, JobEvent
from app.domain.jobs.events import downsample
from tests.factories import append_step_event

MANY_STEPS = """
INSERT INTO job_events (id, project_id, job_id, seq, attempt, level, type, message, data)
SELECT 'ftevent-' || n, project_id, id, event_seq + n, attempt, 'info', 'metrics', '', jsonb_build_object(
    'step', CASE WHEN n > 3000 THEN n - 1000 ELSE n END,
    'train_loss', CASE n WHEN 777 THEN 99 WHEN 778 THEN 0.001 WHEN 1234 THEN NULL WHEN 2500 THEN 500 ELSE 1 + n % 7 END,
    'grad_norm', CASE n WHEN 901 THEN 50 ELSE 1 END, 'tokens_per_second', CASE n WHEN 903 THEN 2 ELSE 900 END,
    'peak_memory_bytes', CASE n WHEN 907 THEN 2e9 WHEN 2501 THEN 9e9 ELSE 1e9 END)
  || CASE WHEN n % 50 = 0 THEN jsonb_build_object('full_valid_loss', 2 - (n = 1350)::int) ELSE '{}' END
FROM jobs, generate_series(1, 4000) AS n WHERE id = :job_id
"""


def test_a_thinned_curve_has_its_ends_extremes_and_best_validation_and_one_in_a_list_evenly_spaced_steps(
    sessions: Sessions, running: Job
) -> None:
    """Of 3,000 steps, the last thousand of which were trained again; the first run of them had the highest loss
    and memory."""
    with transaction(sessions) as session:
        session.execute(text(MANY_STEPS), {"job_id": running.id})
        session.execute(text("UPDATE jobs SET event_seq = event_seq + 4000 WHERE id = :id"), {"id": running.id})
        found = events.loss_points(session, running.id, 100)
        curve = events.loss_curves(session, running.project_id, [running.id], 40)[running.id]
    assert found.total == 3000
    assert len(found.points) <= 6 * 100
    by_step = {point.step: point for point in found.points}
    assert list(by_step) == sorted(by_step)
    assert {1, 777, 778, 1234, 1350, 3000} <= by_step.keys()
    assert (by_step[777].loss, by_step[1350].valid_loss, by_step[1234].is_finite) == (99.0, 1.0, False)
    assert max(point.loss for point in found.points) == 99.0
    assert by_step[3000].row == running.event_seq + 4000
    assert {901, 903, 907} <= {point.step for point in found.extremes}
    chosen = {point.step for point in downsample(found.points, 100, found.extremes)}
    assert {1, 777, 778, 901, 903, 907, 1350, 3000} <= chosen

    assert (curve.steps[0], curve.steps[-1], curve.best_valid_loss) == (1, 3000, 1.0)
    gaps = [later - earlier for earlier, later in pairwise(curve.steps)]
    assert 25 <= len(curve.steps) == len(curve.train_losses) <= 40
    assert 0 < min(gaps) <= max(gaps) <= 2 * 4000 / 39


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
        claims.append_event(session, lease_of(running), "not stored")
        session.rollback()
    assert numbers(sessions, running) == before
    with transaction(sessions) as session:
        claims.append_event(session, lease_of(running), "stored")
    assert numbers(sessions, running) == [*before, before[-1] + 1]


def test_the_later_run_of_a_repeated_step_counts(sessions: Sessions, running: Job) -> None:
    with transaction(sessions) as session:
        for step, loss in ((1, 1.0), (2, 0.9), (2, 0.5), (3, 0.4)):
            append_step_event(session, running, step, 3, loss)
        rows = events.all_metrics(session, running.id)
    assert [(row["step"], row["train_loss"]) for row in rows] == [(1, 1.0), (2, 0.5), (3, 0.4)]
