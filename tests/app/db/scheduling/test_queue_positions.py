"""Places in the queue: what a forecast is made of, and which rows it writes."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest
from sqlalchemy import select

from app.db.engine import Sessions, transaction
from app.db.scheduling import queue_positions
from app.db.tables import Job, Project, QueuePlace
from app.domain.scheduling.forecast import JobForecast
from app.storage import LocalStorage
from tests.factories import make_file, make_job, validate_job

LATER = 100_000.0


def places(count: int, shift: int = 0, start: float | None = LATER, lack: str | None = None) -> list[JobForecast]:
    """Of so many jobs, each `shift` places from where it would be."""
    return [JobForecast(f"j{number}", "p", number + shift, start, lack) for number in range(1, count + 1)]


def write(sessions: Sessions, placed: Sequence[JobForecast]) -> int:
    with transaction(sessions) as session:
        return queue_positions.write_positions(session, placed)


def rows(sessions: Sessions) -> dict[str, QueuePlace]:
    with transaction(sessions) as session:
        return {row.job_id: row for row in session.scalars(select(QueuePlace))}


class TestWrite:
    def test_does_not_write_unchanged_positions(self, sessions: Sessions) -> None:
        assert write(sessions, places(300)) == 300
        assert write(sessions, places(300)) == 0

    def test_the_first_hundred_places_are_exact_and_those_behind_to_a_hundredth(self, sessions: Sessions) -> None:
        write(sessions, places(1000, shift=1))
        assert write(sessions, places(1000)) == 99  # from the hundredth on, one place is a hundredth
        assert [rows(sessions)[f"j{number}"].position for number in (1, 99, 100, 1000)] == [1, 99, 101, 1001]
        assert write(sessions, places(1000, shift=40)) == 1000

    def test_a_start_moves_when_it_moves_by_half_a_minute_or_a_tenth_of_the_wait(self, sessions: Sessions) -> None:
        write(sessions, places(1))
        first = rows(sessions)["j1"].expected_start_at
        assert write(sessions, places(1, start=0.9 * LATER)) == 1
        assert write(sessions, places(1, start=0.95 * LATER)) == 0
        assert first is not None
        moved = rows(sessions)["j1"].expected_start_at
        assert moved is not None
        assert (first - moved).total_seconds() == pytest.approx(0.1 * LATER, abs=5)

    def test_a_start_that_hardly_moved_stays_also_where_the_place_moved(self, sessions: Sessions) -> None:
        write(sessions, places(1))
        first = rows(sessions)["j1"].expected_start_at
        assert write(sessions, places(1, shift=1, start=LATER + 20)) == 1
        assert (rows(sessions)["j1"].position, rows(sessions)["j1"].expected_start_at) == (2, first)

    @pytest.mark.parametrize("change", [{"start": None}, {"lack": "no worker"}], ids=str)
    def test_what_is_known_no_longer_is_written(self, sessions: Sessions, change: dict[str, None]) -> None:
        write(sessions, places(1))
        assert write(sessions, places(1, **change)) == 1
        assert write(sessions, places(1, **change)) == 0
        assert write(sessions, places(1)) == 1

    def test_deletes_positions_of_jobs_that_left_the_queue(self, sessions: Sessions) -> None:
        write(sessions, places(3))
        write(sessions, places(2))
        assert rows(sessions).keys() == {"j1", "j2"}
        write(sessions, [])
        assert rows(sessions) == {}

    def test_notifies_only_after_a_change(self, sessions: Sessions, database_url: str) -> None:
        # No connection of a pool: nothing reads there, and a listener with a full socket stops every DROP DATABASE.
        url = database_url.replace("+psycopg", "", 1)
        with psycopg.connect(url, autocommit=True) as listener:
            listener.execute("LISTEN tunery_jobs")

            def heard() -> list[str]:
                return [each.payload for each in listener.notifies(timeout=0.2)]

            write(sessions, places(1))
            assert heard() == ["- - 0 queue"]
            write(sessions, places(1))
            assert heard() == []


def test_a_job_that_has_made_steps_has_so_much_less_to_do(
    sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
) -> None:
    with transaction(sessions) as session:
        for planned, progress in (
            (100.0, None), (100.0, {"step": 3, "total_steps": 4}), (100.0, {"step": 0, "total_steps": 0}),
            (100.0, {"step": 5, "total_steps": 4}), (None, {"step": 3, "total_steps": 4}),
        ):  # fmt: skip
            job = make_job(session, project, make_file(session, storage, project))
            job = validate_job(session)
            row = session.get_one(Job, job.id)
            row.planned_seconds, row.progress, row.worker_labels = planned, progress, ["b", "a"]
    with transaction(sessions) as session:
        waiting = sorted(queue_positions.waiting_jobs(session), key=lambda job: job.seq)
    assert [job.seconds for job in waiting] == [100.0, 25.0, 100.0, 0.0, None]
    assert waiting[0].requirements.labels == {"a", "b"}
    assert len({id(job.requirements) for job in waiting}) == 1
